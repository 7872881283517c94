"""Who is let in: the backlog's limit, deadlines, a broker that takes nothing."""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from django.conf import settings

from api.accounts.models import User
from api.context import app
from api.errors import ApiError
from api.requests import active, build
from api.requests import admission as backlog
from api.requests.admission import Figures, Finished, queues, retry_after, waiting
from broker.stream import Stream
from broker.wire import ChatMessage, Job, JobClass, Sampling
from tests.unit.api_site import FakeClient, echo, node_state

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}
ARRANCA = {"text": "hello", "timestamp": 1}

# ---- the rule


@pytest.mark.parametrize(
    ("own", "then", "now"),
    [
        (7, None, 7),
        (7, Figures(waiting=0, free=0, own=0), 7),
        (
            7,
            Figures(waiting=0, free=2, own=0, admitted=7),
            5,
        ),  # two of them are on their way to a slot
        (5, Figures(waiting=0, free=2, own=0, admitted=7), 5),  # and have arrived there
        (0, Figures(waiting=0, free=2, own=0, admitted=7), 0),
        (0, Figures(waiting=30, free=0, own=0), 30),  # of other processes
        (4, Figures(waiting=30, free=0, own=0, admitted=4), 34),
        (0, Figures(waiting=30, free=0, own=4), 26),  # four of them began
        (9, Figures(waiting=5, free=0, own=9), 9),  # four are between two queues
        (
            9,
            Figures(waiting=5, free=3, own=5),
            6,
        ),  # some came past the limit, so that none was admitted
    ],
)
def test_how_many_wait(own: int, then: Figures | None, now: int) -> None:
    assert waiting(own, then) == now


def test_when_to_come_back() -> None:
    assert retry_after(1, deque()) == backlog.RETRY_AFTER
    began = Finished(at=100.0, by_node={"n1": 10, "n2": 10, "gone": 5})
    assert retry_after(1, deque([began])) == backlog.RETRY_AFTER
    idle = Finished(at=110.0, by_node={"n1": 10, "n2": 10})
    assert retry_after(1, deque([began, idle])) == backlog.RETRY_AFTER
    slow = Finished(at=110.0, by_node={"n1": 11, "n2": 3, "new": 400})  # n2 was started anew
    assert retry_after(1, deque([began, slow])) == 10
    assert retry_after(3, deque([began, slow])) == 30
    fast = Finished(at=110.0, by_node={"n1": 10_010})
    assert retry_after(1, deque([began, fast])) == 1


def test_which_queues_hold_jobs() -> None:
    states = {
        "root": node_state("root", engine="none"),
        "n1": node_state("n1"),
        "x": node_state("x", model="third"),
    }
    assert queues(states, ("tiny", "big")) == {
        "tiny": {"canopy.node.root", "canopy.node.n1"},
        "big": {"canopy.node.root-big"},  # its root is away; jobs may wait for it
        "third": {"canopy.node.x"},
    }


# ---- the limit


@pytest.fixture
def limit(fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the backlog's limit."""

    def set_limit(most: int) -> None:
        monkeypatch.setattr(app().backlog, "_env", replace(settings.ENV, backlog=most))

    return set_limit


def job(user: str = "somebody", job_class: JobClass = "interactive", content: str = "hello") -> Job:
    messages = [ChatMessage(role="user", content=content)]
    return build.chat_job("tiny", messages, Sampling(), User(username=user), job_class=job_class)


async def submitted(job: Job) -> Stream | ApiError:
    try:
        return await app().submitter.submit(job)
    except ApiError as error:
        return error


async def flood(size: int, **fields: Any) -> tuple[list[Stream], list[ApiError]]:
    """What becomes of so many jobs submitted in one go."""
    results = await asyncio.gather(*(submitted(job(**fields)) for _ in range(size)))
    streams = [each for each in results if isinstance(each, Stream)]
    return streams, [each for each in results if isinstance(each, ApiError)]


async def test_a_flood_is_cut_at_the_limit(fake: FakeClient, limit: Callable[[int], None]) -> None:
    fake.script = lambda job: []
    fake.states = {"n1": node_state("n1", slots=2, running=2, status="busy")}
    streams, refusals = await flood(5000)
    assert (len(streams), len(refusals)) == (1000, 4000)
    assert {(each.status, each.code) for each in refusals} == {(429, "backlog_full")}
    assert {each.headers["X-Canopy-Position"] for each in refusals} == {"1001"}
    limit(1003)
    more, refusals = await flood(5)
    assert (len(more), len(refusals)) == (3, 2)


async def test_a_flood_is_cut_before_anything_was_measured(
    fake: FakeClient, limit: Callable[[int], None]
) -> None:
    fake.script = lambda job: []
    fake.states.clear()
    limit(10)
    streams, refusals = await flood(50)
    assert (len(streams), len(refusals)) == (10, 40)


async def test_jobs_on_their_way_to_a_free_slot_do_not_wait(
    fake: FakeClient, limit: Callable[[int], None]
) -> None:
    fake.script = lambda job: []
    fake.states = {"n1": node_state("n1", slots=20)}
    limit(5)
    streams, _ = await flood(50)
    assert len(streams) == 25
    for stream in streams[:20]:
        fake.push(echo(stream.job)[0])  # it begins; the slots are taken now, whatever was measured
    assert len((await flood(5))[0]) == 0


async def test_what_others_have_submitted_counts(
    program: httpx.AsyncClient,
    user: User,
    fake: FakeClient,
    limit: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(100)
    fake.script = lambda job: []
    await app().submitter.submit(job(user.username))
    fake.script = echo
    fake.states = {
        "root": node_state("root", engine="none", slots=0, held=30),
        "n1": node_state("n1", status="busy", running=2, held=9),
    }
    fake.queue_depths = {"canopy.node.root": 60, "canopy.node.n1": 1, "canopy.node.root-big": 5}
    monkeypatch.setattr(backlog, "MEASURE_EVERY", 0.0)
    monkeypatch.setattr(backlog, "STALE_SECONDS", 0.0)  # each request waits for a new measurement
    answer = await program.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.headers["X-Canopy-Position"]) == (429, "101")
    assert (
        await program.post("/v1/chat/completions", json={**CHAT, "model": "big"})
    ).status_code == 200
    fake.queue_depths["canopy.node.root"] = 59
    assert (await program.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_requests_are_not_held_up_by_the_measurement(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def depths(queues: Any) -> dict[str, int]:
        await never.wait()
        return {}

    assert (await program.post("/v1/chat/completions", json=CHAT)).status_code == 200
    monkeypatch.setattr(fake, "depths", depths)
    monkeypatch.setattr(backlog, "MEASURE_EVERY", 0.0)
    monkeypatch.setattr(backlog, "PATIENCE", 3600.0)
    assert (await program.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_refusals_have_the_shapes_that_clients_know(
    program: httpx.AsyncClient,
    member: httpx.AsyncClient,
    user: User,
    fake: FakeClient,
    limit: Callable[[int], None],
) -> None:
    conversation = (await member.post("/api/conversations", json={})).json()["id"]
    limit(1)
    fake.script = lambda job: []
    fake.states.clear()
    await app().submitter.submit(job(user.username))
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/completions", {"model": "tiny", "prompt": "hello"}),
    ):
        answer = await program.post(path, json=body)
        assert answer.status_code == 429
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "backlog_full")
        assert "number 2" in error["message"]
        assert (answer.headers["Retry-After"], answer.headers["X-Canopy-Position"]) == ("5", "2")
    for client, path, body in (
        (program, "/arranca/", ARRANCA),
        (member, "/arranca/", ARRANCA),
        (member, f"/api/conversations/{conversation}/messages", {"content": "hello"}),
    ):
        answer = await client.post(path, json=body)
        assert answer.status_code == 429
        assert set(answer.json()["error"]) == {"message", "field", "code", "params"}
        assert (answer.headers["Retry-After"], answer.headers["X-Canopy-Position"]) == ("5", "2")
    assert (await member.get(f"/api/conversations/{conversation}")).json()["messages"] == []
    assert len(fake.jobs) == 1


async def test_a_broker_that_takes_nothing_says_what_to_do(
    program: httpx.AsyncClient, member: httpx.AsyncClient, fake: FakeClient
) -> None:
    conversation = (await member.post("/api/conversations", json={})).json()["id"]
    fake.connected = False
    for client, path, body in (
        (program, "/v1/chat/completions", CHAT),
        (program, "/arranca/", ARRANCA),
        (member, f"/api/conversations/{conversation}/messages", {"content": "hello"}),
    ):
        answer = await client.post(path, json=body)
        assert answer.status_code == 503
        assert "docs/operations.md" in answer.json()["error"]["message"]
        assert int(answer.headers["Retry-After"]) >= 1


# ---- deadlines


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", "nan", "inf", "86400.5"])
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/arranca/", ARRANCA)])
async def test_what_is_no_deadline_is_refused(
    program: httpx.AsyncClient, fake: FakeClient, path: str, body: dict[str, Any], text: str
) -> None:
    answer = await program.post(path, json=body, headers={"X-Canopy-Deadline": text})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param" if path.startswith("/v1/") else "field"] == "X-Canopy-Deadline"
    assert fake.jobs == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "tiny", "prompt": "hello"}),
        ("/arranca/", ARRANCA),
    ],
)
async def test_a_job_has_the_deadline_that_was_asked_for(
    program: httpx.AsyncClient, fake: FakeClient, path: str, body: dict[str, Any]
) -> None:
    for headers, seconds in (({"X-Canopy-Deadline": "7.5"}, 7.5), ({}, 3600.0)):
        assert (await program.post(path, json=body, headers=headers)).status_code == 200
        assert (fake.jobs[-1].seconds_left, fake.jobs[-1].deadline) == (seconds, None)


async def test_a_chat_answer_has_the_ordinary_deadline(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    conversation = (await member.post("/api/conversations", json={})).json()["id"]
    await member.post(f"/api/conversations/{conversation}/messages", json={"content": "hello"})
    assert (fake.jobs[0].seconds_left, fake.jobs[0].deadline) == (3600.0, None)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are looked at often, and no node is given time to end its job itself."""
    monkeypatch.setattr(active, "GRACE", 0.0)


@pytest.mark.usefixtures("impatient")
async def test_a_job_that_no_node_ends_ends_at_its_deadline(
    program: httpx.AsyncClient, fake: FakeClient, user: Any
) -> None:
    fake.script = lambda job: []
    soon = {"X-Canopy-Deadline": "0.1"}
    for path, body in (("/v1/chat/completions", CHAT), ("/arranca/", ARRANCA)):
        answer = await program.post(path, json=body, headers=soon)
        assert answer.status_code == 504
        assert "waited" in answer.json()["error"]["message"]
    fake.script = lambda job: echo(job)[:2]
    streamed = await program.post(
        "/v1/chat/completions", json={**CHAT, "stream": True}, headers=soon
    )
    assert streamed.status_code == 200
    *_, piece, failed = [
        json.loads(line[6:]) for line in streamed.text.split("\n\n") if line.startswith("data: ")
    ]
    assert piece["choices"][0]["delta"]["content"] == "one"
    assert (failed["error"]["type"], failed["error"]["code"]) == (
        "timeout_error",
        "deadline_exceeded",
    )
    assert fake.cancels == [(each.request_id, user.username) for each in fake.jobs]
