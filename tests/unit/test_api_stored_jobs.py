"""/v1/jobs: one result each, whatever becomes of the process that runs them."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from api.accounts import keys
from api.accounts.models import User
from api.context import app
from api.jobs import events, runner, store, webhooks
from api.jobs.models import StoredJob
from api.plans import store as plans
from broker.wire import Delta, Failed, Finished, Start
from tests.unit.api_site import FakeClient, browser, echo, make_user, until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}
NEW = {"endpoint": "/v1/chat/completions", "body": CHAT}


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for longer than a test needs."""
    monkeypatch.setattr(runner, "EVERY", 0.02)
    monkeypatch.setattr(runner, "PAUSE_SECONDS", (0.01, 0.05))
    monkeypatch.setattr(events, "POLL", 0.01)
    monkeypatch.setattr(webhooks, "EVERY", 0.02)


@pytest.fixture(autouse=True)
async def no_jobs_of_others(fake: FakeClient) -> AsyncIterator[None]:
    """What a test leaves open is not for the next one."""
    yield
    await StoredJob.objects.all().adelete()


async def made(program: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await program.post("/v1/jobs", json={**NEW, **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def when(program: httpx.AsyncClient, job: dict[str, Any], *statuses: str) -> Any:
    """The job once it has one of these statuses."""
    async with asyncio.timeout(20):
        while True:
            now = (await program.get(f"/v1/jobs/{job['id']}")).json()
            if now["status"] in statuses:
                return now
            await asyncio.sleep(0.01)


def text_of(job: dict[str, Any]) -> str:
    return job["result"]["body"]["choices"][0]["message"]["content"]


async def test_a_job_has_the_endpoints_result(program: httpx.AsyncClient, fake: FakeClient) -> None:
    job = await made(program, priority="batch", body={**CHAT, "stream": True})
    assert (job["object"], job["status"], job["result"]) == ("job", "queued", None)
    done = await when(program, job, "completed")
    assert (text_of(done), done["result"]["status_code"]) == ("one two three", 200)
    assert (done["model"], done["priority"], done["error"]) == ("tiny", "batch", None)
    assert done["request_id"] == fake.jobs[0].request_id
    assert fake.jobs[0].job_class == "batch"
    listed = (await program.get("/v1/jobs")).json()
    assert [each["id"] for each in listed["data"]] == [job["id"]]
    assert listed["data"][0]["result"] is None
    answer = await program.delete(f"/v1/jobs/{job['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_cancellable")


async def test_what_the_endpoint_refuses_is_the_result(program: httpx.AsyncClient) -> None:
    job = await made(program, body={**CHAT, "temperature": 7})
    done = await when(program, job, "failed")
    assert done["result"]["status_code"] == 400
    assert done["result"]["body"]["error"]["param"] == "temperature"


@pytest.mark.parametrize("more", [{"n": 2}, {"logprobs": True}])
async def test_answers_that_cannot_be_stored_as_text_are_made(
    program: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    done = await when(program, await made(program, body={**CHAT, **more}), "completed")
    assert len(done["result"]["body"]["choices"]) == more.get("n", 1)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"body": "x"}, "body"),
        ({"priority": "first"}, "priority"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": 1e9}, "deadline"),
        ({"deadline": "2020-01-01T00:00:00Z"}, "deadline"),
        ({"webhook": {"url": "ftp://example.org"}}, "webhook.url"),
        ({"webhook": {"url": "http://127.0.0.1:8000/"}}, "webhook.url"),
        ({"webhook": {"url": "http://[::1]/"}}, "webhook.url"),
        ({"webhook": {"url": "http://169.254.169.254/latest"}}, "webhook.url"),
        ({"webhook": {"url": "http://localhost/"}}, "webhook.url"),
        ({"webhook": {"url": "http://you:me@example.org/"}}, "webhook.url"),
        ({"webhook": {"url": "https://example.org/", "secret": "short"}}, "webhook.secret"),
    ],
)
async def test_what_is_wrong_is_named(
    program: httpx.AsyncClient, changes: dict[str, Any], param: str
) -> None:
    answer = await program.post("/v1/jobs", json={**NEW, **changes})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


async def test_a_list_has_filters(program: httpx.AsyncClient, fake: FakeClient) -> None:
    first = await when(program, await made(program), "completed")
    fake.script = lambda job: []
    second = await made(program, body={**CHAT, "model": "big"})

    async def ids(**filters: Any) -> list[str]:
        answer = await program.get("/v1/jobs", params=filters)
        assert answer.status_code == 200, answer.text
        return [each["id"] for each in answer.json()["data"]]

    assert await ids() == [second["id"], first["id"]]
    assert await ids(status="completed") == [first["id"]]
    assert await ids(model="big") == [second["id"]]
    assert await ids(created_after=first["ended_at"]) == [second["id"]]
    assert await ids(created_before=second["created_at"]) == [first["id"]]
    assert await ids(after=second["id"]) == [first["id"]]
    assert await ids(limit=1) == [second["id"]]


async def test_jobs_are_their_users_alone(program: httpx.AsyncClient) -> None:
    job = await made(program)
    async with browser() as other:
        key = await sync_to_async(keys.create)(await make_user())
        other.headers["Authorization"] = f"Bearer {key}"
        path = f"/v1/jobs/{job['id']}"
        for method, address in (("GET", path), ("DELETE", path), ("GET", f"{path}/events")):
            assert (await other.request(method, address)).status_code == 404
        assert (await other.get("/v1/jobs")).json()["data"] == []


async def test_a_user_has_so_many_open_jobs(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_OPEN", 1)
    fake.script = lambda job: []
    await made(program)
    answer = await program.post("/v1/jobs", json=NEW)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_jobs")
    assert int(answer.headers["retry-after"]) > 0


async def test_a_cancelled_job_leaves_the_tree(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    job = await made(program)
    await until(lambda: fake.jobs, 20)
    answer = await program.delete(f"/v1/jobs/{job['id']}")
    assert answer.json()["status"] == "cancelled"
    assert answer.json()["error"]["code"] == "cancelled"
    await until(lambda: fake.cancelled, 20)
    assert (await program.delete(f"/v1/jobs/{job['id']}")).json()["status"] == "cancelled"


async def test_a_deadline_passes(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="expired", message="too late")
    ]
    done = await when(program, await made(program, deadline=5), "expired")
    assert done["error"]["code"] == "deadline_exceeded"
    assert fake.jobs[0].seconds_left is not None and fake.jobs[0].seconds_left <= 5


async def test_a_job_goes_on_in_another_process(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    """The runner is gone in the middle of the answer; the next one attaches to it."""
    fake.script = lambda job: [
        Start(request_id=job.request_id, node="n1"),
        Delta(request_id=job.request_id, text="one "),
    ]
    job = await made(program)
    await when(program, job, "running")
    for running in list(app().jobs._running.values()):
        assert running.task is not None
        running.task.cancel()
    await until(lambda: not app().jobs._running)
    await store.release_all()
    [wire] = fake.jobs
    fake.push(Delta(request_id=wire.request_id, text="two"))
    fake.push(
        Finished(request_id=wire.request_id, reason="stop", prompt_tokens=1, completion_tokens=2)
    )
    done = await when(program, job, "completed")
    assert (text_of(done), len(fake.jobs)) == ("one two", 1)
    assert done["trail"][0]["node"] == "n1"


async def test_a_refusal_is_waited_out(program: httpx.AsyncClient, fake: FakeClient) -> None:
    failures = iter([True, True])

    def script(job: Any) -> list[Any]:
        if next(failures, False):
            code, text = "engine", "it broke"
            return [Failed(request_id=job.request_id, code=code, message=text, retryable=True)]
        return echo(job)

    fake.script = script
    done = await when(program, await made(program), "completed", "failed")
    assert done["status"] == "completed"
    assert len(fake.jobs) == 3


async def test_a_disabled_users_job_ends(
    program: httpx.AsyncClient, fake: FakeClient, user: User
) -> None:
    fake.connected = False
    job = await made(program)
    await User.objects.filter(pk=user.pk).aupdate(is_active=False)
    fake.connected = True
    async with asyncio.timeout(10):
        while (await StoredJob.objects.aget(name=job["id"][4:])).status != "cancelled":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def parsed(stream: str) -> list[tuple[str, str, Any]]:
    """Id, name and data of each event."""
    found = []
    for block in stream.strip().split("\n\n"):
        fields = dict(each.split(": ", 1) for each in block.splitlines())
        if "event" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found


async def test_events_can_be_resumed(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: [
        Start(request_id=job.request_id, node="n1"),
        Delta(request_id=job.request_id, text="one "),
    ]
    job = await made(program)
    await when(program, job, "running")
    path = f"/v1/jobs/{job['id']}/events"
    reading = asyncio.create_task(program.get(path))
    resumed = asyncio.create_task(program.get(path, headers={"Last-Event-ID": "2"}))
    await asyncio.sleep(0.1)
    request_id = fake.jobs[0].request_id
    fake.push(Delta(request_id=request_id, text="two"))
    fake.push(Finished(request_id=request_id, reason="stop", prompt_tokens=1, completion_tokens=2))
    whole, rest = parsed((await reading).text), parsed((await resumed).text)
    deltas = [data["text"] for _, name, data in whole if name == "delta"]
    assert "".join(deltas) == "one two"
    assert "".join(data["text"] for _, name, data in rest if name == "delta") == "e two"
    assert whole[0][1] == "job" and whole[0][2]["status"] == "running"
    assert (whole[-1][0], whole[-1][1]) == ("end", "end")
    assert text_of(whole[-1][2]) == "one two"
    assert (await program.get(path, headers={"Last-Event-ID": "end"})).status_code == 204


async def test_ended_jobs_are_forgotten(program: httpx.AsyncClient) -> None:
    job = await made(program)
    await when(program, job, "completed")
    past = timezone.now() - timedelta(days=8)
    await StoredJob.objects.filter(name=job["id"][4:]).aupdate(ended=past)
    assert await store.forget_old(7) == 1
    assert (await program.get(f"/v1/jobs/{job['id']}")).status_code == 404


async def test_nobodys_many_jobs_keep_anothers_waiting(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MOST_RUNNING", {"interactive": 4, "batch": 1})
    monkeypatch.setattr(runner, "MOST_OF_USER", {"interactive": 3, "batch": 1})
    fake.script = lambda job: [] if job.model == "big" else echo(job)
    fake.trees.add("big")
    for _ in range(6):
        await made(program, body={**CHAT, "model": "big"})
    await until(lambda: len(fake.jobs) == 3, 20)
    async with browser() as other:
        key = await sync_to_async(keys.create)(await make_user())
        other.headers["Authorization"] = f"Bearer {key}"
        await when(other, await made(other), "completed")
    assert len(fake.jobs) == 4


async def test_jobs_that_a_plan_refuses_keep_no_place(
    program: httpx.AsyncClient, fake: FakeClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MOST_RUNNING", {"interactive": 1, "batch": 1})
    await sync_to_async(plans.put)("slow jobs", {"requests_per_minute": 1})
    await sync_to_async(plans.assign)(user.username, "slow jobs")
    await app().plans.changed()
    app().keys.clear()
    await when(program, await made(program, priority="batch"), "completed")
    for priority in ("batch", "interactive"):
        await made(program, priority=priority)
    async with browser() as other:
        key = await sync_to_async(keys.create)(await make_user())
        other.headers["Authorization"] = f"Bearer {key}"
        for priority in ("batch", "interactive"):
            await when(other, await made(other, priority=priority), "completed")


async def test_a_deadline_is_also_a_time(program: httpx.AsyncClient) -> None:
    moment = timezone.now().replace(microsecond=0) + timedelta(hours=2)
    job = await made(program, deadline=moment.isoformat())
    assert datetime.fromisoformat(job["expires_at"]) == moment
    answer = await program.post("/v1/jobs", json={**NEW, "deadline": "tomorrow"})
    assert answer.status_code == 400


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"])
async def test_a_time_that_is_none_in_utc_is_refused(
    program: httpx.AsyncClient, moment: str
) -> None:
    for name in ("created_after", "created_before"):
        answer = await program.get("/v1/jobs", params={name: moment})
        assert answer.status_code == 400, answer.text


async def test_a_jobs_streams_are_counted(
    program: httpx.AsyncClient, fake: FakeClient, user: User
) -> None:
    fake.script = lambda job: []
    job = await made(program)
    row = await StoredJob.objects.aget(name=job["id"][4:])
    streams = app().answer_streams
    reading = [await streams.open(user.pk, ("jobs.StoredJob", row.pk)) for _ in range(32)]
    answer = await program.get(f"/v1/jobs/{job['id']}/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "streams_limit")
    for each in reading:
        await each.aclose()


async def test_a_job_that_has_ended_keeps_no_body(program: httpx.AsyncClient) -> None:
    job = await made(program)
    await when(program, job, "completed")
    assert bytes((await StoredJob.objects.aget(name=job["id"][4:])).body) == b""
