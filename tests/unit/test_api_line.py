"""The line for operators: lists, actions, intake, prompts."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.accounts.models import User
from api.context import app
from api.operate.audit.models import AuditEntry
from api.operate.line import actions, prompts
from api.operate.line.intake import Intake
from api.operate.line.models import PausedModel, PromptAccess
from api.operate.line.view import line, with_pauses
from broker.announcements import Announcements
from broker.job_messages import (
    Answer,
    CancelJob,
    ChangeClass,
    JobReport,
    MoveJob,
    RunningJob,
    WaitingJob,
)
from broker.job_watch import ArrivedReport
from broker.wire import Failed, Job
from tests.unit.api_site import FakeClient, browser, log_in, make_user, node_state

NOW = 1_750_000_000.0


def waiting(number: int, **fields: Any) -> WaitingJob:
    known = {"user": "ada", "job_class": "interactive", "created": NOW - 9, "position": number}
    return WaitingJob(request_id=f"w{number}", **{**known, **fields})


def running(number: int, **fields: Any) -> RunningJob:
    known = {"user": "bob", "job_class": "batch", "created": NOW - 9, "seconds": 4, "tokens": 7}
    trail = ("root", "n1")
    return RunningJob(request_id=f"r{number}", trail=trail, **{**known, **fields})


def report(node: str, **fields: Any) -> JobReport:
    known = {"model": "tiny", "waiting_count": 0, "batch_count": 0}
    return JobReport(node=node, **{**known, **fields})


@pytest.fixture(autouse=True)
async def empty_tables(fake: FakeClient) -> AsyncIterator[None]:
    """Nothing is paused, allowed or logged."""
    for model in (PausedModel, PromptAccess, AuditEntry):
        await model.objects.all().adelete()
    await app().intake._read()
    yield
    await PausedModel.objects.all().adelete()


@pytest.fixture
async def administrator(fake: FakeClient) -> AsyncIterator[httpx.AsyncClient]:
    user = await make_user(is_staff=True, is_superuser=True)
    async with browser() as client:
        await log_in(client, user)
        yield client
    await user.adelete()


def test_reports_become_two_lists_with_ages_of_now() -> None:
    reports = [
        ArrivedReport(
            report("root", waiting_count=3, batch_count=1, waiting=(waiting(1, seconds=6.0),)),
            arrived=100.0,
        ),
        ArrivedReport(report("n1", running=(running(1), running(2, seconds=9))), arrived=101.0),
    ]
    seen = line(reports, monotonic=102.0, now=NOW)
    assert [(row.request_id, row.age, row.starts_in) for row in seen.waiting] == [("w1", 9.0, 4.0)]
    assert [(row.request_id, row.seconds) for row in seen.running] == [("r2", 10.0), ("r1", 5.0)]
    [total] = seen.models
    assert (total.model, total.waiting, total.batch, total.running) == ("tiny", 3, 1, 2)
    assert not seen.complete
    paused = with_pauses(seen, {"big": "upgrade"})
    assert [(each.model, each.paused) for each in paused.models] == [("tiny", False), ("big", True)]


async def test_the_line_is_what_all_nodes_answer(
    staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    root = report("root", waiting_count=1, waiting=(waiting(1, created=time.time()),))
    fake.job_watch.script = lambda question: [
        Answer(number="", node="root", known=True, report=root),
        Answer(number="", node="old"),
    ]
    found = (await staff.get("/api/operate/line", params={"user": "ada", "limit": 5})).json()
    assert [row["request_id"] for row in found["waiting"]] == ["w1"]
    assert found["complete"]
    asked = fake.job_watch.asked[-1]
    assert (asked.user, asked.request_id, asked.limit) == ("ada", "", 5)


@pytest.mark.parametrize(
    ("path", "body", "kind", "action"),
    [
        ("cancel", None, CancelJob, "cancel job"),
        ("move", {"before": "all"}, MoveJob, "move job up"),
        ("class", {"job_class": "batch"}, ChangeClass, "change job class"),
    ],
)
async def test_an_action_says_what_the_node_did_and_is_recorded(
    staff: httpx.AsyncClient, fake: FakeClient, path: str, body: Any, kind: type, action: str
) -> None:
    fake.job_watch.script = lambda question: [
        Answer(number="", node="n1"),
        Answer(number="", node="root", known=True, done=True, note="so be it"),
    ]
    answer = await staff.post(f"/api/operate/line/jobs/w1/{path}", json=body)
    assert answer.json() == {"request_id": "w1", "node": "root", "note": "so be it"}
    assert isinstance(fake.job_watch.asked[-1], kind)
    entry = await AuditEntry.objects.aget()
    assert (entry.action, entry.target, entry.result) == (action, "w1", "root: so be it")


async def test_a_job_that_nobody_knows_is_looked_for_twice(
    staff: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "IN_TRANSIT_SECONDS", 0.0)
    fake.job_watch.script = lambda question: []
    answer = await staff.post("/api/operate/line/jobs/gone/cancel")
    assert answer.status_code == 404
    assert len(fake.job_watch.asked) == 2
    fake.job_watch.script = lambda question: [
        Answer(number="", node="n1", known=True, note="it runs already")
    ]
    answer = await staff.post("/api/operate/line/jobs/r1/move", json={})
    assert (answer.status_code, answer.json()["error"]["message"]) == (409, "it runs already")
    results = [entry.result async for entry in AuditEntry.objects.order_by("pk")]
    assert results == ["no node has the job 'gone': it has ended, or never was", "it runs already"]


async def test_a_paused_model_takes_no_new_requests(
    staff: httpx.AsyncClient, program: httpx.AsyncClient, fake: FakeClient
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    change = {"model": "tiny", "paused": True, "reason": "an upgrade until noon"}
    answer = await staff.put("/api/operate/line/intake", json=change)
    assert answer.json()["paused"][0]["reason"] == "an upgrade until noon"
    refused = await program.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "30")
    error = refused.json()["error"]
    assert error["code"] == "model_paused"
    assert "an operator paused it: an upgrade until noon" in error["message"]
    assert fake.jobs == []

    shown = (await program.get("/v1/models")).json()["data"]
    assert {each["id"]: each.get("paused") for each in shown} == {"tiny": True, "big": None}
    chat = (await program.get("/api/models")).json()["models"]
    assert {each["id"]: (each["paused"], each["pause_reason"]) for each in chat} == {
        "tiny": (True, "an upgrade until noon"),
        "big": (False, ""),
    }
    await staff.put("/api/operate/line/intake", json={"model": "tiny", "paused": False})
    assert (await program.post("/v1/chat/completions", json=body)).status_code == 200


async def test_only_models_that_there_are_can_be_paused(staff: httpx.AsyncClient) -> None:
    answer = await staff.put("/api/operate/line/intake", json={"model": "none", "paused": True})
    assert answer.status_code == 404


async def test_a_pause_outlives_the_process_and_reaches_others(
    staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    other = Intake(Announcements("another process"))
    await other.pause("tiny", "", "ada")
    fresh = Intake(Announcements("a process that has just started"))
    for intake in (fresh, app().intake):
        app().intake._stale.set()  # what an announcement does
        await asyncio.sleep(0.05)
        with pytest.raises(Exception, match="takes no new requests"):
            await intake.check("tiny")


async def test_prompts_are_hidden_unless_an_administrator_allows_them(
    staff: httpx.AsyncClient, administrator: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.job_watch.script = lambda question: [
        Answer(number="", node="n1", known=True, done=True, prompt="user:\nsecret", letters=12)
    ]
    path = "/api/operate/line/prompts"
    look = "/api/operate/line/jobs/r1/prompt"
    assert (await staff.post(look)).status_code == 403
    assert fake.job_watch.asked == []
    assert (await staff.put(path, json={"allowed": True})).status_code == 403
    answer = await administrator.put(path, json={"allowed": True})
    assert answer.json() == {"allowed": True, "may_change": True}
    assert (await staff.get(path)).json() == {"allowed": True, "may_change": False}
    shown = (await staff.post(look)).json()
    assert (shown["text"], shown["letters"]) == ("user:\nsecret", 12)
    looks = [entry.result async for entry in AuditEntry.objects.filter(action="look at prompt")]
    assert len(looks) == 2 and looks[0] == "done" and "do not see prompts" in looks[1]
    assert not [entry async for entry in AuditEntry.objects.all() if "secret" in str(vars(entry))]


async def test_the_environment_can_decide_about_prompts(
    administrator: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Decided:
        operators_see_prompts = False

    monkeypatch.setattr(prompts, "ENV", Decided)
    answer = await administrator.put("/api/operate/line/prompts", json={"allowed": True})
    assert answer.status_code == 409


async def test_a_cancelled_jobs_client_hears_that_an_operator_did_it(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    def cancelled(job: Job) -> list[Any]:
        message = "an operator cancelled this request"
        return [Failed(request_id=job.request_id, code="cancelled", message=message)]

    fake.script = cancelled
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    answer = await program.post("/v1/chat/completions", json=body)
    assert answer.status_code == 403
    assert answer.json()["error"]["message"] == "an operator cancelled this request"


async def test_the_stream_tells_what_nodes_report(
    live: str, staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    watch = fake.job_watch
    watch.node_states.add(node_state("root"))
    cookies = dict(staff.cookies.items())
    async with (
        asyncio.timeout(4),
        httpx.AsyncClient(base_url=live, cookies=cookies) as page,
        page.stream("GET", "/api/operate/line/stream") as stream,
    ):
        lines = (text async for text in stream.aiter_lines() if text.startswith("data: "))
        watch._on_report(report("root", waiting_count=2, waiting=(waiting(1),)))
        seen = json.loads((await anext(lines))[6:])
        assert [row["request_id"] for row in seen["waiting"]] == ["w1"]
        watch._on_report(report("root"))
        while seen["waiting"]:
            seen = json.loads((await anext(lines))[6:])
        assert seen["models"][0]["waiting"] == 0


async def test_the_line_is_for_staff(member: httpx.AsyncClient, user: User) -> None:
    for path in ("", "/stream", "/intake", "/prompts"):
        assert (await member.get(f"/api/operate/line{path}")).status_code == 403
    for path in ("cancel", "prompt"):
        assert (await member.post(f"/api/operate/line/jobs/r1/{path}")).status_code == 403
    change = {"model": "tiny", "paused": True}
    assert (await member.put("/api/operate/line/intake", json=change)).status_code == 403
