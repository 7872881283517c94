"""GET /api/events: what one tab hears, within bounds, across processes, and at the end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest

from api.accounts.models import User
from api.chat import store
from api.context import app
from api.events import feed, hub, inbox
from broker.client import Client
from broker.conversation_events import ConversationChange
from broker.memory import MemoryBroker, MemorySession
from broker.wire import Delta, Finished, Waiting
from tests.unit.api_site import FakeClient, log_in, until
from tests.unit.dialogues import begin

Event = tuple[str, dict[str, Any]]


def parsed(block: bytes) -> Event | None:
    """An event's name and payload; None for a comment."""
    text = block.decode()
    if text.startswith(":"):
        return None
    name, data = text.removeprefix("event: ").split("\ndata: ")
    return name, json.loads(data)


class Tab:
    """One reader's events."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        self._events = events

    async def next(self, *names: str) -> Event:
        """The next event, or the next one of these names."""
        async with asyncio.timeout(30):
            while True:
                event = parsed(await anext(self._events))
                if event is not None and (not names or event[0] in names):
                    return event


@asynccontextmanager
async def tab(user: User, home: str | None = None) -> AsyncIterator[Tab]:
    """A reader that shows the conversation at `home`, after its first event."""
    conversation = None
    if home is not None:
        conversation = await store.conversation(user, int(home.rpartition("/")[2]))
    async with aclosing(feed.events(user, conversation)) as events:
        reader = Tab(events)
        await reader.next("ready")
        yield reader


async def test_a_second_tab_reads_what_the_first_one_writes(
    member: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    created = await member.post("/api/conversations", json={})
    home = f"/api/conversations/{created.json()['id']}"
    fake.script = lambda job: []
    async with tab(user, home) as reader:
        turn = (await member.post(f"{home}/messages", json={"content": "a 🌳"})).json()
        for sent in (turn["user_message"], turn["assistant_message"]):
            heard = (await reader.next("message"))[1]["message"]
            assert {**heard, "created": sent["created"]} == sent
        answer, request = turn["assistant_message"]["id"], fake.jobs[0].request_id
        fake.push(Waiting(request_id=request, node="root", reason="busy", position=2))
        waiting = {
            "message": answer,
            "reason": "busy",
            "code": "",
            "slots": None,
            "position": 2,
            "seconds": None,
        }
        assert await reader.next("waiting") == ("waiting", waiting)
        fake.push(Delta(request_id=request, text="a 🌳"))
        delta = {"message": answer, "offset": 0, "text": "a 🌳"}
        assert await reader.next("delta") == ("delta", delta)
        fake.push(Delta(request_id=request, text=" b"))
        assert (await reader.next("delta"))[1]["offset"] == 4  # the tree takes two UTF-16 units
        fake.push(Finished(request_id=request, reason="stop"))
        name, end = await reader.next("done", "failed")
        assert (name, end["message"]["content"]) == ("done", "a 🌳 b")
        assert end["message"]["status"] == "done"


async def test_a_tab_that_comes_late_gets_the_running_answer(
    member: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    fake.script = lambda job: [Delta(request_id=job.request_id, text="so far")]
    home, answer = await begin(member)
    async with tab(user, home) as reader:
        delta = {"message": answer["id"], "offset": 0, "text": "so far"}
        assert await reader.next("delta") == ("delta", delta)
        await member.post(f"{home}/messages/{answer['id']}/stop")
        assert (await reader.next("done"))[1]["message"]["status"] == "stopped"


async def test_the_list_changes_in_all_tabs_of_its_user_and_no_others(
    member: httpx.AsyncClient, user: User, staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    async with tab(user) as reader:
        await staff.post("/api/conversations", json={})
        created = (await member.post("/api/conversations", json={})).json()
        name, fields = await reader.next()
        assert (name, fields["change"], fields["conversation"]["id"]) == (
            "list",
            "created",
            created["id"],
        )
        await member.patch(f"/api/conversations/{created['id']}", json={"title": "Trees"})
        assert (await reader.next("list"))[1]["conversation"]["title"] == "Trees"
        await member.delete(f"/api/conversations/{created['id']}")
        deleted = {"change": "deleted", "conversation": {"id": created["id"]}}
        assert await reader.next("list") == ("list", deleted)


async def test_ready_has_another_version_when_something_was_missed(
    member: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    home, _ = await begin(member)
    conversation = await store.conversation(user, int(home.rpartition("/")[2]))
    seen = (await member.get(home)).json()["version"]
    assert await store.version(conversation) == seen
    fake.push(Finished(request_id=fake.jobs[0].request_id, reason="stop"))
    await until(lambda: not app().writers.handles())
    shown = (await member.get(home)).json()["version"]
    assert await store.version(conversation) == shown != seen
    await member.patch(home, json={"title": "Trees"})
    assert await store.version(conversation) != shown


async def test_a_reader_that_is_too_far_behind_loads_again(user: User, fake: FakeClient) -> None:
    async with tab(user) as reader:
        for _ in range(inbox.CHANGES + 1):
            app().hub.publish(user.pk, 1)
        assert await reader.next() == ("resync", {})
        app().hub.publish(user.pk, 1, "deleted")
        assert (await reader.next())[0] == "list"


async def test_the_readers_of_one_user_are_limited(
    member: httpx.AsyncClient,
    user: User,
    fake: FakeClient,
    live: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "READERS_PER_USER", 1)
    async with httpx.AsyncClient(base_url=live) as client:
        await log_in(client, user)
        async with client.stream("GET", "/api/events") as first:
            assert first.status_code == 200
            blocks = first.aiter_bytes()
            await anext(blocks)
            assert (await client.get("/api/events")).status_code == 429
        await until(lambda: not app().hub._inboxes)  # the reader left
        async with client.stream("GET", "/api/events") as again:
            assert again.status_code == 200


async def test_nobody_elses_conversation(
    member: httpx.AsyncClient, staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    home, _ = await begin(staff)
    refused = await member.get(f"/api/events?conversation={home.rpartition('/')[2]}")
    assert refused.status_code == 404
    assert (await member.get("/api/events?conversation=-1")).status_code == 400


async def test_a_silent_stream_says_that_it_lives_and_ends_after_its_lifetime(
    user: User, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "KEEPALIVE", 0.01)
    monkeypatch.setattr(feed, "LIFETIME", 0.03)
    blocks = [block async for block in feed.events(user, None)]
    assert blocks[0].startswith(b"event: ready")
    assert set(blocks[1:]) == {b": ping\n\n"}


async def test_processes_tell_each_other_over_the_broker() -> None:
    broker = MemoryBroker()

    async def connect() -> MemorySession:
        return broker.session()

    clients = [Client("", process=name, connect=connect) for name in ("one", "two")]
    received: dict[str, list[ConversationChange | None]] = {"one": [], "two": []}
    for client in clients:
        client.conversations.listen(received[client.process].append)
        await client.start()
    await until(lambda: received == {"one": [None], "two": [None]})
    change = ConversationChange(process="one", user=7, conversation=3, message=9)
    clients[0].conversations.publish(change)
    await until(lambda: received["two"] == [None, change])
    assert received["one"] == [None]
    for client in clients:
        await client.stop()
