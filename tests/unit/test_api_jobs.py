"""/api/jobs/: where a job is, and its end."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime

import httpx
import pytest
import pytest_asyncio

from api.accounts.models import User
from api.context import app
from api.requests import build
from broker.wire import ChatMessage, Delta, Finished, Sampling, Start, Waiting
from tests.unit.api_site import FakeClient, browser, echo, log_in, make_user

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}


@pytest_asyncio.fixture
async def pending(
    program: httpx.AsyncClient, fake: FakeClient
) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A request of `program` whose job nobody has taken yet."""
    fake.script = lambda job: []
    task = asyncio.create_task(program.post("/v1/chat/completions", json=CHAT))
    await fake.submitted.wait()
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest_asyncio.fixture
async def stranger(fake: FakeClient) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody else's browser."""
    async with browser() as client:
        await log_in(client, await make_user())
        yield client


@pytest.mark.usefixtures("pending")
async def test_a_job_is_seen_from_its_beginning_to_its_end(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    job = fake.jobs[0]
    address = f"/api/jobs/{job.request_id}"
    description = (await program.get(address)).json()
    assert datetime.fromisoformat(description.pop("created")).timestamp() == pytest.approx(
        job.created, abs=0.001
    )
    deadline = job.created + (job.seconds_left or 0)
    assert datetime.fromisoformat(description.pop("deadline")).timestamp() == pytest.approx(
        deadline, abs=0.5
    )
    fresh = {
        "request_id": job.request_id,
        "model": "tiny",
        "node": None,
        "attempt": 1,
        "waiting": None,
    }
    nowhere = {"job_class": "interactive", "position": None, "estimated_start": None}
    assert description == {**fresh, **nowhere, "state": "waiting", "tokens": 0}
    fake.push(Waiting(request_id=job.request_id, node="root", reason="every slot is busy"))
    description = (await program.get(address)).json()
    assert (description["state"], description["waiting"]) == ("waiting", "every slot is busy")
    fake.push(Start(request_id=job.request_id, node="n2"))
    fake.push(Delta(request_id=job.request_id, text="one two", tokens=2))
    description = (await program.get(address)).json()
    assert (
        description["state"],
        description["waiting"],
        description["node"],
        description["tokens"],
    ) == (
        "running",
        None,
        "n2",
        2,
    )
    fake.push(
        Waiting(request_id=job.request_id, node="", reason="the connection to the broker was lost")
    )
    description = (await program.get(address)).json()
    assert (description["state"], description["waiting"]) == (
        "waiting",
        "the connection to the broker was lost",
    )


@pytest.mark.usefixtures("pending")
async def test_a_jobs_place_in_the_line_is_told_while_it_stands_there(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    address = f"/api/jobs/{fake.jobs[0].request_id}"

    async def place() -> tuple[int | None, str | None]:
        found = (await program.get(address)).json()
        return found["position"], found["estimated_start"]

    request_id = fake.jobs[0].request_id
    before = time.time()
    fake.push(
        Waiting(
            request_id=request_id,
            node="root",
            reason="every slot is busy",
            position=12,
            seconds=30.0,
        )
    )
    after = time.time()
    position, starts = await place()
    assert position == 12
    assert starts is not None
    assert before + 29.99 <= datetime.fromisoformat(starts).timestamp() <= after + 30.01
    fake.push(Waiting(request_id=request_id, node="root", reason="every slot is busy", position=11))
    assert await place() == (11, None)
    fake.push(Start(request_id=request_id, node="n2"))
    assert await place() == (None, None)
    fake.push(
        Waiting(
            request_id=request_id, node="root", reason="every slot is busy", position=1, seconds=1.0
        )
    )
    fake.push(
        Delta(request_id=request_id, text="one")
    )  # it ran all the time: the root's word was late
    assert await place() == (None, None)
    assert (await program.get(address)).json()["state"] == "running"


async def test_a_job_that_ends_while_it_waits_stands_in_no_line(
    program: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    job = build.chat_job("tiny", [ChatMessage(role="user", content="hello")], Sampling(), user)
    stream = await app().submitter.submit(job)
    fake.push(
        Waiting(
            request_id=job.request_id,
            node="root",
            reason="every slot is busy",
            position=3,
            seconds=9.0,
        )
    )
    stream.fail("expired", "too late")
    found = (await program.get(f"/api/jobs/{job.request_id}")).json()
    assert (found["state"], found["position"], found["estimated_start"]) == ("failed", None, None)


async def test_a_reader_that_comes_late_gets_the_present_place_alone(
    user: User, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    stream = await app().submitter.submit(
        build.chat_job("tiny", [ChatMessage(role="user", content="hello")], Sampling(), user)
    )
    for position in (3, 2, 1):
        fake.push(
            Waiting(request_id=stream.request_id, node="root", reason="busy", position=position)
        )
    fake.push(Start(request_id=stream.request_id, node="n1"))
    fake.push(Waiting(request_id=stream.request_id, node="root", reason="n1 died"))
    fake.push(Finished(request_id=stream.request_id, reason="stop"))
    frames = [frame async for frame in stream]
    assert [type(frame) for frame in frames] == [Waiting, Start, Waiting, Finished]
    assert isinstance(frames[0], Waiting)
    assert frames[0].position == 1


async def test_an_answer_that_nobody_has_read_yet(
    program: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    messages = [ChatMessage(role="user", content="one two three")]
    job = build.chat_job("tiny", messages, Sampling(), user)
    stream = await app().submitter.submit(job)
    found = (await program.get(f"/api/jobs/{job.request_id}")).json()
    assert (found["state"], found["tokens"]) == ("done", 3)
    assert [frame async for frame in stream][-1] == fake.pushed[job.request_id][-1]


async def test_a_job_that_was_read_is_forgotten(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    answer = await program.post("/v1/chat/completions", json=CHAT)
    assert (await program.get(f"/api/jobs/{answer.headers['X-Request-Id']}")).status_code == 404


async def test_somebody_elses_job_is_not_there(
    stranger: httpx.AsyncClient, pending: asyncio.Task[httpx.Response], fake: FakeClient
) -> None:
    address = f"/api/jobs/{fake.jobs[0].request_id}"
    assert (await stranger.get(address)).status_code == 404
    assert (await stranger.delete(address)).status_code == 404
    assert fake.cancels == []
    assert not pending.done()


async def test_the_owner_cancels_a_job(
    program: httpx.AsyncClient, pending: asyncio.Task[httpx.Response], fake: FakeClient
) -> None:
    job = fake.jobs[0]
    for frame in echo(job)[:3]:
        fake.push(frame)
    assert (await program.delete(f"/api/jobs/{job.request_id}")).status_code == 204
    assert fake.cancels == [(job.request_id, job.user)]
    fake.push(
        Finished(request_id=job.request_id, reason="cancelled", completion_tokens=2)
    )  # as its node says then
    choice = (await pending).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "stop")


async def test_a_job_that_another_process_reads_is_cancelled_in_the_callers_name(
    member: httpx.AsyncClient, user: User, fake: FakeClient
) -> None:
    assert (await member.delete("/api/jobs/0123456789abcdef0123456789abcdef")).status_code == 202
    assert fake.cancels == [("0123456789abcdef0123456789abcdef", user.username)]
    assert (await member.delete(f"/api/jobs/{'x' * 65}")).status_code == 404
    fake.connected = False
    assert (await member.delete("/api/jobs/0123456789abcdef0123456789abcdef")).status_code == 503
    assert len(fake.cancels) == 1
