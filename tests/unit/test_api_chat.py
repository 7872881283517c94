"""Conversations, live answers, stop, ownership."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from api.chat import events
from api.chat.history import title_from
from api.chat.models import Message
from api.requests import position as queue_position
from broker.wire import Delta, Failed, Finished, Waiting
from tests.unit.api_site import FakeClient, beginning, browser, log_in, make_user, node_state, until
from tests.unit.dialogues import begin, ending_of, told, writer_of


async def test_a_whole_turn(member: httpx.AsyncClient, fake: FakeClient) -> None:
    home, answer = await begin(member, "hello there\nworld")
    assert (answer["role"], answer["status"]) == ("assistant", "streaming")
    stream = await member.get(f"{home}/messages/{answer['id']}/stream")
    assert stream.headers["content-type"].startswith("text/event-stream")
    *deltas, (name, end) = told(stream.text)
    assert deltas[0] == ("start", {"node": "n1", "trail": [{"node": "n1", "wait_ms": 0}]})
    assert "".join(fields["text"] for _, fields in deltas[1:]) == "hello there world"
    assert name == "done"
    assert (end["finish_reason"], end["completion_tokens"], end["seen_from"]) == ("stop", 3, None)
    conversation = (await member.get(home)).json()
    assert conversation["title"] == "hello there"
    assert conversation["model"] == "tiny"
    question, answer = conversation["messages"]
    assert {**end["answer"], "created": answer["created"]} == answer
    assert (question["parent"], answer["parent"]) == (None, question["id"])
    assert conversation["head"] == answer["id"]
    assert (answer["model"], answer["node"], answer["prompt_tokens"]) == ("tiny", "n1", 3)
    assert answer["ttft_ms"] is not None
    assert answer["seconds"] >= 0
    assert (question["role"], question["content"], question["status"]) == (
        "user",
        "hello there\nworld",
        "done",
    )
    assert (answer["content"], answer["status"], answer["finish_reason"]) == (
        "hello there world",
        "done",
        "stop",
    )
    listed = (await member.get("/api/conversations")).json()["conversations"]
    assert [each["id"] for each in listed] == [conversation["id"]]
    assert set(listed[0]) == {
        "id",
        "title",
        "model",
        "updated",
        "head",
        "pinned",
        "archived",
        "folder",
        "temporary",
        "running",
    }


async def test_the_next_turn_sees_the_former_ones(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home, answer = await begin(member, "first")
    await member.get(f"{home}/messages/{answer['id']}/stream")
    await until(lambda: not writer_of(answer))
    await member.post(f"{home}/messages", json={"content": "second", "model": "big"})
    job = fake.jobs[-1]
    assert job.messages is not None
    assert [(turn.role, turn.content) for turn in job.messages] == [
        ("user", "first"),
        ("assistant", "first"),
        ("user", "second"),
    ]
    found = (await member.get(home)).json()
    assert (job.model, found["model"], found["title"]) == ("big", "big", "first")


async def test_readers_come_late_and_again(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: []
    home, answer = await begin(member)
    request_id = fake.jobs[0].request_id
    writer = writer_of(answer)
    assert writer is not None
    early, late = writer.follow(), writer.follow()
    waiting = Waiting(request_id=request_id, node="root", reason="2 before you")
    fake.push(waiting)
    assert await anext(early) == waiting
    fake.push(Delta(request_id=request_id, text="so "))
    assert await anext(early) == Delta(request_id=request_id, text="so ")
    fake.push(Delta(request_id=request_id, seq=1, text="far"))
    assert await anext(early) == Delta(request_id=request_id, text="far")
    assert await anext(late) == Delta(request_id=request_id, text="so far")
    fake.push(Finished(request_id=request_id, seq=2, reason="length", completion_tokens=2))
    end = Finished(request_id=request_id, reason="length", completion_tokens=2)
    assert [each async for each in early] == [each async for each in late] == [end]
    after = await member.get(f"{home}/messages/{answer['id']}/stream")
    assert ending_of(after.text) == [
        ("delta", {"text": "so far"}),
        ("done", {"finish_reason": "length", "completion_tokens": 2, "seen_from": None}),
    ]


async def test_no_node_is_told_as_waiting(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states.clear()
    fake.script = lambda job: []
    _, answer = await begin(member)
    writer = writer_of(answer)
    assert writer is not None
    said = await anext(writer.follow())
    assert isinstance(said, Waiting)
    assert (said.code, said.reason) == ("no_node", "no node is serving tiny yet")


async def test_the_place_in_the_line_is_told(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: []
    _, answer = await begin(member)
    (job,) = fake.jobs
    assert job.job_class == "interactive"
    writer = writer_of(answer)
    assert writer is not None
    place = Waiting(
        request_id=job.request_id,
        node="root",
        reason="every slot is busy",
        code="busy",
        slots=16,
        position=12,
        seconds=30.0,
    )
    fake.push(place)
    page = events.of(Message(), writer.follow())
    [(name, fields)] = told((await anext(page)).decode())
    assert 0 < fields.pop("seconds") <= 30.0  # what is left when it is told
    assert name == "waiting"
    assert fields == {
        "reason": "every slot is busy",
        "code": "busy",
        "slots": 16,
        "position": 12,
        "job_class": "interactive",
    }
    fake.push(msgspec.structs.replace(place, position=None, seconds=None))
    [(_, fields)] = told((await anext(page)).decode())
    assert (fields["position"], fields["seconds"]) == (None, None)
    await page.aclose()


def test_an_estimate_ages() -> None:
    place = Waiting(request_id="r", node="root", reason="busy", position=2, seconds=30.0)
    assert queue_position.with_age(place, 12.5).seconds == 17.5
    assert queue_position.with_age(place, 40.0).seconds == 0.0
    unknown = Waiting(request_id="r", node="root", reason="busy")
    assert queue_position.with_age(unknown, 12.5) == unknown


async def test_stop_keeps_the_text_and_cancels_the_job(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = beginning("so far")
    home, answer = await begin(member)
    reader = asyncio.create_task(member.get(f"{home}/messages/{answer['id']}/stream"))
    assert (await member.post(f"{home}/messages/{answer['id']}/stop")).status_code == 204
    assert fake.cancelled == [(fake.jobs[0].request_id, 2)]
    assert ending_of((await reader).text)[-1] == (
        "done",
        {"finish_reason": "cancelled", "completion_tokens": 1, "seen_from": None},
    )
    stored = (await member.get(home)).json()["messages"][1]
    assert (stored["status"], stored["content"], stored["finish_reason"]) == (
        "stopped",
        "so far",
        "cancelled",
    )
    assert (
        await member.post(f"{home}/messages/{answer['id']}/stop")
    ).status_code == 204  # again: nothing happens


async def test_failure_is_stored_and_told(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="engine", message="out of memory")
    ]
    home, answer = await begin(member)
    stream = await member.get(f"{home}/messages/{answer['id']}/stream")
    assert ending_of(stream.text) == [("failed", {"message": "out of memory"})]
    stored = (await member.get(home)).json()["messages"][1]
    assert (stored["status"], stored["error"]) == ("failed", "out of memory")


async def test_one_answer_at_a_time(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: []
    home, _ = await begin(member)
    second = await member.post(f"{home}/messages", json={"content": "and?"})
    assert second.status_code == 409
    assert len((await member.get(home)).json()["messages"]) == 2
    both = await asyncio.gather(
        *(member.post(f"{home}/messages", json={"content": "x"}) for _ in range(5))
    )
    assert {each.status_code for each in both} == {409}


async def test_a_refused_job_leaves_no_trace(member: httpx.AsyncClient, fake: FakeClient) -> None:
    home = f"/api/conversations/{(await member.post('/api/conversations', json={})).json()['id']}"
    fake.connected = False
    assert (await member.post(f"{home}/messages", json={"content": "x"})).status_code == 503
    fake.connected = True
    unknown = await member.post(f"{home}/messages", json={"content": "x", "model": "gpt-9"})
    assert (unknown.status_code, unknown.json()["error"]["field"]) == (404, "model")
    assert "tiny, big" in unknown.json()["error"]["message"]
    assert (await member.get(home)).json()["messages"] == []
    assert (await member.post(f"{home}/messages", json={"content": "x"})).status_code == 201


async def test_rename_and_delete(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: []
    home, _ = await begin(member)
    changed = await member.patch(home, json={"title": "Better", "model": "big"})
    assert (changed.json()["title"], changed.json()["model"]) == ("Better", "big")
    assert (await member.delete(home)).status_code == 204
    assert fake.cancelled == [(fake.jobs[0].request_id, 2)]
    assert (await member.get(home)).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "content"),
        ({"content": ""}, "content"),
        ({"content": "  \n"}, "content"),
        ({"content": 5}, "content"),
        ({"content": "x" * 100_001}, "content"),
        ({"content": "x", "model": ""}, "model"),
        ({"content": "x", "model": 5}, "model"),
        ([], "body"),
    ],
)
async def test_wrong_messages(member: httpx.AsyncClient, body: Any, field: str) -> None:
    home = f"/api/conversations/{(await member.post('/api/conversations', json={})).json()['id']}"
    answer = await member.post(f"{home}/messages", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


async def test_others_conversations_do_not_exist(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    home, answer = await begin(member)
    async with browser() as stranger:
        await log_in(stranger, await make_user(is_staff=True, is_superuser=True))
        assert (await stranger.get("/api/conversations")).json()["conversations"] == []
        message = f"{home}/messages/{answer['id']}"
        mine = (await stranger.post("/api/conversations", json={})).json()["id"]
        for method, path, body in [
            ("GET", home, None),
            ("PATCH", home, {"title": "mine"}),
            ("DELETE", home, None),
            ("POST", f"{home}/messages", {"content": "x"}),
            ("GET", f"{message}/stream", None),
            ("POST", f"{message}/stop", None),
            ("GET", f"/api/conversations/{mine}/messages/{answer['id']}/stream", None),
            ("GET", f"/api/conversations/{10**30}", None),
        ]:
            found = await stranger.request(method, path, json=body)
            assert found.status_code == 404, (method, path)
            assert set(found.json()["error"]) == {"message", "field", "code", "params"}
    assert fake.cancelled == []
    assert (await member.get(home)).json()["messages"][1]["status"] == "streaming"


async def test_models(member: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states = {
        "root": node_state("root", engine="none", slots=0, held=3),
        "n1": node_state("n1", slots=2, running=1, status="busy", context_length=512),
        "n2": node_state("n2", slots=2, status="draining"),
    }
    open_to_all = {"paused": False, "pause_reason": "", "description": "", "longest_answer": None}
    known = {"waiting": 3, "context": 512} | open_to_all
    unknown = {"waiting": 0, "context": None} | open_to_all
    assert (await member.get("/api/models")).json() == {
        "models": [
            {"id": "tiny", "ready": True, "nodes": 1, "slots": 2, "free": 1} | known,
            {"id": "big", "ready": False, "nodes": 0, "slots": 0, "free": 0} | unknown,
        ],
        "default": "tiny",
    }


def test_titles() -> None:
    assert title_from("  one   two \n three") == "one two"
    assert title_from("```\n# A plan:\n| a | b |") == "A plan:"
    assert title_from(" ?\n! ") == "? !"
    long = title_from("word " * 40)
    assert long.endswith("word…")
    assert len(long) <= 61
    assert title_from("x" * 100) == "x" * 60 + "…"
