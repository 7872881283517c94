"""Use by user, key and model."""

import csv
import io
from datetime import UTC, datetime, timedelta

import httpx
from asgiref.sync import sync_to_async

from api.accounts import keys
from api.accounts.models import ApiKey, User
from api.context import app
from api.operate.history.models import UsageRow
from api.operate.usage import commands, store
from api.operate.usage.log import Entry, Sums
from tests.unit.api_site import FakeClient, browser

TODAY = datetime.now(UTC).date()
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "a b"}]}


async def test_requests_are_counted_by_user_key_and_model(
    program: httpx.AsyncClient,
    member: httpx.AsyncClient,
    staff: httpx.AsyncClient,
    user: User,
    fake: FakeClient,
) -> None:
    first = await ApiKey.objects.aget(user=user)
    second = await sync_to_async(keys.create)(user, "other")
    for _ in range(2):
        await program.post("/v1/chat/completions", json=ASK)
    async with browser() as other:
        other.headers["Authorization"] = f"Bearer {second}"
        await other.post("/v1/chat/completions", json={**ASK, "model": "big"})
    await member.post("/arranca/", json={"text": "a", "timestamp": 1})
    query = {"by": ["key", "model"], "user": user.username}
    use = (await staff.get("/api/operate/usage", params=query)).json()["use"]
    found = {(line["key"], line["label"], line["model"]): line["requests"] for line in use}
    name = second.split("_")[1]
    assert found == {(first.name, "", "tiny"): 2, (name, "other", "big"): 1, ("", "", "tiny"): 1}
    of_user = (await staff.get("/api/operate/usage", params={"user": user.username})).json()
    [line] = of_user["use"]
    assert (line["user"], line["requests"], line["prompt_tokens"]) == (user.username, 4, 12)
    own = (await member.get("/api/account/usage")).json()["keys"]
    assert {line["key"] for line in own} == {first.name, name, ""}
    text = (await staff.get("/api/operate/usage/csv", params=query)).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert sum(int(row["requests"]) for row in rows) == 4
    assert (await member.get("/api/operate/usage")).status_code == 403


async def test_what_is_added_by_several_processes_adds_up(fake: FakeClient) -> None:
    entry = Entry(TODAY, "ada", "k", "tiny")
    for _ in range(3):
        await sync_to_async(store.add)({entry: Sums(2, 1, 10, 20)})
    row = await UsageRow.objects.aget(user="ada", key="k")
    assert (row.requests, row.failed, row.prompt_tokens, row.completion_tokens) == (6, 3, 30, 60)
    await UsageRow.objects.filter(pk=row.pk).aupdate(day=TODAY - timedelta(days=401))
    await sync_to_async(store.remove_old)(TODAY)
    assert not await UsageRow.objects.filter(pk=row.pk).aexists()


async def test_a_database_that_is_away_loses_nothing(
    program: httpx.AsyncClient, user: User
) -> None:
    from unittest import mock

    from django.db import DatabaseError

    with mock.patch.object(store, "add", side_effect=DatabaseError("away")):
        await program.post("/v1/chat/completions", json=ASK)
        await app().usage.flush()
    await app().usage.flush()
    assert (await UsageRow.objects.aget(user=user.username)).requests == 1


def test_a_table_for_people() -> None:
    lines = commands.table([{"user": "ada", "requests": 3}, {"user": "bob", "requests": 10}])
    assert lines == ["user  requests", "ada   3", "bob   10"]
    assert commands.table([]) == ["Nothing was asked in this time."]
