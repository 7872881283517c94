"""Conversations as files, and back."""

from typing import Any

import httpx
import pytest
from django.utils import timezone

from tests.unit.api_site import FakeClient, until
from tests.unit.dialogues import begin, writer_of

Json = dict[str, Any]


async def with_branches(member: httpx.AsyncClient) -> str:
    """A conversation whose question was edited; its address."""
    home, answer = await begin(member, "first")
    await until(lambda: not writer_of(answer))
    turn = await member.post(f"{home}/messages", json={"content": "edited", "parent": None})
    await until(lambda: not writer_of(turn.json()["assistant_message"]))
    return home


def shape(conversation: Json) -> Json:
    """What an import must keep: everything but the keys of rows."""
    places = {message["id"]: place for place, message in enumerate(conversation["messages"])}
    messages = [
        {**message, "id": places[message["id"]], "parent": places.get(message["parent"])}
        for message in conversation["messages"]
    ]
    return {**conversation, "head": places[conversation["head"]], "messages": messages}


async def test_an_export_is_an_import(
    member: httpx.AsyncClient, staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    home = await with_branches(member)
    await member.patch(home, json={"title": "Trees", "folder": "F", "pinned": True})
    exported = await member.get("/api/conversations/export")
    assert exported.headers["content-type"] == "application/json"
    document = exported.json()
    assert len(document["conversations"][0]["messages"]) == 4
    received = await staff.post("/api/conversations/import", json=document)
    assert received.json() == {"conversations": 1, "messages": 4, "known": 0}
    again = (await staff.get("/api/conversations/export")).json()
    assert [shape(each) for each in again["conversations"]] == [
        shape(each) for each in document["conversations"]
    ]
    received = await staff.post("/api/conversations/import", json=document)
    assert received.json() == {"conversations": 0, "messages": 0, "known": 1}


async def test_one_conversation_for_people_and_for_programs(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home = await with_branches(member)
    await member.patch(home, json={"title": "Über\nTrees: <b>"})
    markdown = await member.get(f"{home}/export")
    assert markdown.text == (
        "# Über Trees: <b>\n\n## You\n\nedited\n\n## Assistant (tiny)\n\nedited\n"
    )
    assert markdown.headers["content-disposition"] == 'attachment; filename="ber-trees-b.md"'
    document = (await member.get(f"{home}/export?format=json")).json()
    assert len(document["conversations"][0]["messages"]) == 4
    assert (await member.get(f"{home}/export?format=pdf")).status_code == 400


def message(name: Any, parent: Any = None, **fields: Any) -> Json:
    """A message of a file."""
    return {"id": name, "parent": parent, "role": "user", "content": "x", **fields}


@pytest.mark.parametrize(
    ("conversation", "hint"),
    [
        ({"title": "", "messages": []}, "title"),
        ({"title": "x" * 201, "messages": []}, "title"),
        ({"title": "x", "messages": [message(1), message("1")]}, "one id"),
        ({"title": "x", "messages": [message(2, parent=1), message(1)]}, "parent"),
        ({"title": "x", "messages": [message(1, parent=1)]}, "parent"),
        ({"title": "x", "head": 7, "messages": [message(1)]}, "head"),
        ({"title": "x", "messages": [message(1, role="system")]}, "role"),
        ({"title": "x", "created": "soon", "messages": []}, "created"),
        ({"title": "x", "created": 1e300, "messages": []}, "created"),
        ({"title": "x"}, "messages"),
    ],
)
async def test_wrong_files_store_nothing(
    member: httpx.AsyncClient, conversation: Json, hint: str
) -> None:
    body = {"conversations": [{"title": "good", "messages": []}, conversation]}
    refused = await member.post("/api/conversations/import", json=body)
    assert refused.status_code == 400
    assert hint in refused.json()["error"]["message"]
    assert (await member.get("/api/conversations")).json()["conversations"] == []


async def test_times_are_neither_in_the_future_nor_ancient(member: httpx.AsyncClient) -> None:
    for created in (32503680000, "0001-01-01T00:00:00", -1e9, 0, "2020-01-01T00:00:00+02:00"):
        entry = {"title": f"{created}", "created": created, "messages": []}
        sent = await member.post("/api/conversations/import", json={"conversations": [entry]})
        assert sent.status_code == 200, sent.text
    listed = (await member.get("/api/conversations")).json()["conversations"]
    years = [each["updated"][:4] for each in listed]
    assert years == [str(timezone.now().year), "2019", "1990", "1990", "1990"]
