"""Answers outlive their readers: stored on the way, read and stopped by any process."""

import asyncio
from typing import Any

import httpx
import pytest

from api.answers import following, store
from api.chat.models import Conversation, Message, Status
from api.context import app
from broker.wire import Delta, Finished
from tests.unit.api_site import FakeClient, beginning, until
from tests.unit.dialogues import begin, told, writer_of


async def test_closing_the_page_does_not_stop_the_answer(
    live: str, member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("a")
    home, answer = await begin(member)
    path = f"{live}{home}/messages/{answer['id']}/stream"
    async with (
        httpx.AsyncClient(cookies=dict(member.cookies.items())) as page,
        page.stream("GET", path) as stream,
    ):
        assert await anext(stream.aiter_lines()) == "event: delta"
    await asyncio.sleep(0.05)
    assert fake.cancelled == []
    fake.push(Delta(request_id=fake.jobs[0].request_id, seq=1, text="b"))
    fake.push(
        Finished(request_id=fake.jobs[0].request_id, seq=2, reason="stop", completion_tokens=2)
    )
    await until(lambda: not writer_of(answer))
    assert (await member.get(home)).json()["messages"][1]["content"] == "ab"


async def test_the_servers_stop_ends_streams_at_once_and_stores_the_text(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    from api.server.asgi import application

    fake.script = beginning("so far")
    home, answer = await begin(member)
    reader = asyncio.create_task(member.get(f"{home}/messages/{answer['id']}/stream"))
    await until(lambda: application.handler._endless)
    application.handler.end_streams()
    assert told((await reader).text) == [("delta", {"text": "so far"})]
    await app().writers.hand_over()
    stored = (await member.get(home)).json()["messages"][1]
    assert (stored["status"], stored["content"]) == ("streaming", "so far")
    assert fake.cancelled == [
        (job.request_id, 2) for job in fake.jobs
    ]  # not what a next owner will submit


async def test_text_is_stored_on_the_way(
    member: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.answers import writer as module

    monkeypatch.setattr(module, "SAVE_EVERY", 0.02)
    fake.script = beginning("so far")
    home, _ = await begin(member)
    async with asyncio.timeout(30):
        while (await member.get(home)).json()["messages"][1]["content"] != "so far":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_answer_of_another_process_can_be_read_and_stopped(
    member: httpx.AsyncClient, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "POLL", 0.01)
    conversation = await Conversation.objects.acreate(user=user, model="tiny")
    message = await Message.objects.acreate(
        conversation=conversation,
        role="assistant",
        status=Status.STREAMING,
        owner="elsewhere:1:1",
        content="so",
    )
    path = f"/api/conversations/{conversation.pk}/messages/{message.pk}"
    reader = asyncio.create_task(member.get(f"{path}/stream"))
    await asyncio.sleep(0.05)
    await Message.objects.filter(pk=message.pk).aupdate(content="so far")
    await asyncio.sleep(0.05)
    assert (await member.post(f"{path}/stop")).status_code == 204
    *deltas, end = told((await reader).text)
    assert "".join(fields["text"] for _, fields in deltas) == "so far"
    assert end[0] == "done"


async def test_the_writer_notices_that_another_process_stopped_its_answer(
    member: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.answers import writer as module

    monkeypatch.setattr(module, "SAVE_EVERY", 0.02)
    monkeypatch.setattr(module, "HEARTBEAT", 0.02)
    fake.script = beginning("so far")
    home, answer = await begin(member)
    await store.stop(await Message.objects.aget(pk=answer["id"]))
    await until(lambda: fake.cancelled)
    await until(lambda: not writer_of(answer))
    stored = (await member.get(home)).json()["messages"][1]
    assert (stored["status"], stored["content"]) == ("stopped", "so far")


async def test_what_a_database_refuses_is_replaced(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("a\x00b")
    home, answer = await begin(member)
    await member.post(f"{home}/messages/{answer['id']}/stop")
    assert (await member.get(home)).json()["messages"][1]["content"] == "a\ufffdb"
