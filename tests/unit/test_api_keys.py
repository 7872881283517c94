"""API keys: scopes, expiry, and what ends when one is revoked."""

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone

from api.accounts import guesses, key_cache, key_commands, keys, revocation, scopes
from api.accounts.models import ApiKey, User
from api.context import app
from api.errors import ApiError
from tests.unit.api_site import FakeClient, beginning, browser, refresh_csrf, until

create_key = sync_to_async(keys.create)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def chat(model: str = "tiny", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "a b"}], **fields}


async def program(user: User, **limits: Any) -> httpx.AsyncClient:
    client = browser()
    client.headers["Authorization"] = f"Bearer {await create_key(user, **limits)}"
    return client


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/messages/count_tokens", "chat"),
        ("/v1/completions", "completions"),
        ("/v1/rerank", "embeddings"),
        ("/v1/batches/1", "batches"),
        ("/v1/models/a/b", None),
        ("/tokenize", None),
        ("/detokenize", None),
        ("/v1/whatever", "pages"),
        ("/api/conversations", "pages"),
    ],
)
def test_families(path: str, family: str | None) -> None:
    assert scopes.family_of(path) == family


def test_a_key_for_some_models_starts_nothing_that_runs_without_it() -> None:
    scope = scopes.KeyScope("a", models=frozenset(["tiny"]))
    scope.check_path("/v1/chat/completions")
    with pytest.raises(ApiError, match="cannot start batches"):
        scope.check_path("/v1/batches")


async def test_a_key_is_for_its_models_and_endpoints(fake: FakeClient, user: User) -> None:
    async with await program(user, models=["tiny"], endpoints=["chat"]) as client:
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
        refused = await client.post("/v1/chat/completions", json=chat("big"))
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (403, "key_scope", "model")
        assert "tiny" in error["message"]
        text = {"model": "tiny", "prompt": "a"}
        refused = await client.post("/v1/completions", json=text)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_scope")
        assert (await client.get("/api/conversations")).status_code == 403
    [job] = fake.jobs
    assert job.key == (await ApiKey.objects.aget(user=user)).name


async def test_a_key_for_an_alias_is_for_its_model(
    fake: FakeClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = dataclasses.replace(settings.ENV, model_aliases=(("gpt-*", "tiny"),))
    monkeypatch.setattr(settings, "ENV", env)
    async with await program(user, models=["gpt-4o"]) as client:
        for model, status in (("gpt-4o", 200), ("gpt-5", 200), ("tiny", 200), ("big", 403)):
            answer = await client.post("/v1/chat/completions", json=chat(model))
            assert answer.status_code == status, model


async def test_a_session_after_a_key_has_all_rights(
    member: httpx.AsyncClient, fake: FakeClient, user: User
) -> None:
    async with await program(user, models=["big"]) as client:
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 403
    answer = await member.post("/arranca/", json={"text": "a", "timestamp": 1})
    assert answer.status_code == 200
    assert fake.jobs[-1].key == ""


async def test_an_expired_key_is_refused(user: User, fake: FakeClient) -> None:
    async with await program(user, expires=timezone.now() + timedelta(hours=1)) as client:
        assert (await client.get("/v1/models")).status_code == 200
        await ApiKey.objects.filter(user=user).aupdate(expires=timezone.now())
        app().keys.clear()
        assert (await client.get("/v1/models")).status_code == 401


async def test_keys_are_made_with_scopes_and_expiry(member: httpx.AsyncClient) -> None:
    expires = "2099-01-31T00:00:00Z"
    wanted = {"label": "x", "expires": expires, "models": ["tiny"], "endpoints": ["chat"]}
    created = await member.post("/api/account/keys", json=wanted)
    assert created.status_code == 201, created.text
    assert {name: created.json()[name] for name in wanted} == wanted
    [listed] = (await member.get("/api/account/keys")).json()["keys"]
    assert {name: listed[name] for name in wanted} == wanted
    over = await member.post(
        "/api/account/keys", json={**wanted, "expires": "2020-01-01T00:00:00Z"}
    )
    assert (over.status_code, over.json()["error"]["field"]) == (400, "expires")
    unknown = await member.post("/api/account/keys", json={**wanted, "endpoints": ["all"]})
    assert unknown.status_code == 400


@pytest.mark.parametrize("field", ["revoked", "expires"])
async def test_what_runs_for_an_invalid_key_ends_within_a_second(
    fake: FakeClient, user: User, field: str
) -> None:
    fake.script = beginning("a")
    async with await program(user) as client, await program(user) as other:
        first = asyncio.create_task(client.post("/v1/chat/completions", json=chat()))
        second = asyncio.create_task(other.post("/v1/chat/completions", json=chat()))
        await until(lambda: len(fake.jobs) == 2)
        job = fake.jobs[0]
        value: Any = True if field == "revoked" else timezone.now()
        await ApiKey.objects.filter(name=job.key).aupdate(**{field: value})
        await until(lambda: fake.cancels, 2 * revocation.CHECK_SECONDS)
        assert fake.cancels == [(job.request_id, user.username)]
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def test_a_stream_that_is_read_with_a_key_ends_with_it(live: str, user: User) -> None:
    key = await create_key(user)
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx.AsyncClient(base_url=live, headers=headers) as client,
        client.stream("GET", "/api/events") as events,
    ):
        lines = events.aiter_lines()
        await anext(lines)
        await ApiKey.objects.filter(user=user).aupdate(revoked=True)
        async with asyncio.timeout(4 * revocation.CHECK_SECONDS):
            async for _ in lines:
                pass


async def test_wrong_keys_are_bounded_but_right_ones_work(user: User, fake: FakeClient) -> None:
    async with await program(user) as client, browser() as guesser:
        assert (await client.get("/v1/models")).status_code == 200
        for number in range(guesses.MOST):
            guesser.headers["Authorization"] = f"Bearer canopy_00000000_{number}"
            for _ in range(2):
                assert (await guesser.get("/v1/models")).status_code == 401
        guesser.headers["Authorization"] = "Bearer canopy_00000000_another"
        refused = await guesser.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_guesses")
        assert int(refused.headers["Retry-After"]) <= guesses.WINDOW
        app().keys.clear()
        assert (await client.get("/v1/models")).status_code == 200


async def test_keys_survive_a_new_password_unless_revoked_with_it(
    member: httpx.AsyncClient, user: User
) -> None:
    async with await program(user) as client:
        change = {"current": "secret password", "new": "another good sentence"}
        assert (await member.post("/api/account/password", json=change)).status_code == 204
        app().keys.clear()
        assert (await client.get("/v1/models")).status_code == 200
        await refresh_csrf(member)
        back = {"current": change["new"], "new": "secret sentence", "revoke_keys": True}
        assert (await member.post("/api/account/password", json=back)).status_code == 204
        assert (await client.get("/v1/models")).status_code == 401


def test_another_process_forgets_keys_when_told() -> None:
    assert key_cache.CACHE_SECONDS + revocation.CHECK_SECONDS <= 1


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("30d", NOW + timedelta(days=30)),
        ("12h", NOW + timedelta(hours=12)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
    ],
)
def test_expiry_on_the_command_line(text: str, moment: datetime) -> None:
    assert key_commands.expiry(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "0d", "2020-01-01", "soon", "-3d"])
def test_a_wrong_expiry(text: str) -> None:
    with pytest.raises(key_commands.BadKey, match="expires"):
        key_commands.expiry(text, NOW)
