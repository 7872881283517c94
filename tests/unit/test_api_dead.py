"""Dead letters for operators: who may see what, replays in the background, what is recorded."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import msgspec
import pytest
from django.utils import timezone

from api.chat.models import Message
from api.context import app
from api.operate.audit.models import AuditEntry
from api.operate.dead import store
from api.operate.dead.models import DeadReplay
from broker.encoding import encode
from broker.wire import ChatMessage, Delta, Failed, Finished, Job, Sampling, Start
from tests.unit.api_site import FakeClient, browser, echo, log_in, make_user, until
from tests.unit.dialogues import begin, writer_of
from topology import names

HEADERS = {"reason": "lost 3 times", "node": "n1", "at": "1700000000.5", "trail": ["root", "n1"]}


def a_job(request_id: str, model: str = "tiny") -> Job:
    return Job(
        request_id=request_id,
        model=model,
        reply_to="canopy.reply.gone",
        created=1.0,
        messages=(ChatMessage(role="user", content=f"secret of {request_id}"),),
        sampling=Sampling(seed=7),
        user="ann",
        attempt=4,
        trail=("root", "n1"),
    )


@pytest.fixture
async def letters(fake: FakeClient) -> FakeClient:
    """Two jobs and a message that is none in the queue."""
    await AuditEntry.objects.all().adelete()
    await DeadReplay.objects.all().adelete()
    await fake.memory.session().declare_queue(names.DEAD_QUEUE)
    for body in (encode(a_job("r1")), encode(a_job("r2", "gone")), b"\xff{"):
        fake.memory.put("", names.DEAD_QUEUE, body, HEADERS)
    return fake


@pytest.fixture
async def administrator(letters: FakeClient) -> AsyncIterator[httpx.AsyncClient]:
    """A browser logged in as an administrator."""
    async with browser() as client:
        await log_in(client, await make_user(is_staff=True, is_superuser=True))
        yield client


async def listed(client: httpx.AsyncClient) -> list[str]:
    answer = await client.get("/api/operate/dead")
    assert answer.status_code == 200, answer.text
    return [letter["id"] for letter in answer.json()["letters"]]


async def ended(count: int) -> list[DeadReplay]:
    """The replays, once none runs any more."""
    async with asyncio.timeout(30):
        while await DeadReplay.objects.filter(state__in=["waiting", "running"]).aexists():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    rows = [row async for row in DeadReplay.objects.order_by("pk")]
    assert len(rows) == count
    return rows


async def audited() -> list[tuple[str, str, str]]:
    rows = AuditEntry.objects.order_by("pk")
    return [(row.action, row.target, row.result) async for row in rows]


async def test_operators_see_letters_but_no_texts(
    letters: FakeClient, staff: httpx.AsyncClient, member: httpx.AsyncClient
) -> None:
    answer = await staff.get("/api/operate/dead")
    first, second, garbage = answer.json()["letters"]
    assert first == {
        "id": "r1",
        "when": 1_700_000_000.5,
        "model": "tiny",
        "user": "ann",
        "node": "n1",
        "reason": "lost 3 times",
        "attempts": 4,
        "trail": ["root", "n1"],
        "faults": [],
    }
    assert (second["model"], garbage["model"]) == ("gone", None)
    assert "secret" not in answer.text
    assert len((await staff.get("/api/operate/dead?limit=1")).json()["letters"]) == 1
    assert (await staff.get("/api/operate/dead/content?id=r1")).status_code == 403
    for path in ("", "/stream", "/replays", "/content?id=r1", "/replays/1/answer"):
        assert (await member.get(f"/api/operate/dead{path}")).status_code == 403
    for path in ("replay", "drop"):
        refused = await member.post(f"/api/operate/dead/{path}", json={"ids": ["r1"]})
        assert refused.status_code == 403
    assert await audited() == []


async def test_a_look_at_a_prompt_is_recorded(administrator: httpx.AsyncClient) -> None:
    shown = (await administrator.get("/api/operate/dead/content?id=r1")).json()
    assert shown["job"]["messages"] == [{"role": "user", "content": "secret of r1"}]
    garbage = (await listed(administrator))[-1]
    shown = (await administrator.get(f"/api/operate/dead/content?id={garbage}")).json()
    assert (shown["job"], shown["raw"]) == (None, "\\xff{")
    assert (await administrator.get("/api/operate/dead/content?id=nope")).status_code == 404
    assert await audited() == [
        ("look at a dead letter", "r1", "done"),
        ("look at a dead letter", garbage, "done"),
        ("look at a dead letter", "nope", "there is no dead letter 'nope' now"),
    ]


async def test_operators_read_texts_once_an_administrator_allows_it(
    staff: httpx.AsyncClient, administrator: httpx.AsyncClient
) -> None:
    assert (await staff.get("/api/operate/dead")).json()["reads_texts"] is False
    switch = "/api/operate/line/prompts"
    assert (await administrator.put(switch, json={"allowed": True})).status_code == 200
    assert (await staff.get("/api/operate/dead")).json()["reads_texts"] is True
    assert (await staff.get("/api/operate/dead/content?id=r1")).status_code == 200
    await administrator.put(switch, json={"allowed": False})
    assert (await staff.get("/api/operate/dead/content?id=r1")).status_code == 403


async def test_a_replay_runs_in_the_background_and_drops_its_letter(
    letters: FakeClient, staff: httpx.AsyncClient, administrator: httpx.AsyncClient
) -> None:
    letters.script = lambda job: [Delta(request_id=job.request_id, text="half ")]
    begun = await staff.post("/api/operate/dead/replay", json={"ids": ["r1"]})
    assert begun.status_code == 202, begun.text
    (replay,) = begun.json()["replays"]
    assert (replay["letter"], replay["user"], replay["state"]) == ("r1", "ann", "waiting")
    await letters.submitted.wait()
    job = letters.jobs[-1]
    assert (job.request_id, job.attempt, job.trail, job.user) == (
        replay["request_id"],
        1,
        (),
        "ann",
    )
    assert "r1" not in await listed(staff), "nobody else replays or drops it meanwhile"
    assert (await staff.post("/api/operate/dead/replay", json={"ids": ["r1"]})).status_code == 404
    for frame in echo(job)[1:]:
        letters.push(frame)
    (row,) = await ended(1)
    assert (row.state, row.error) == ("answered", "")
    assert "r1" not in await listed(staff)
    path = f"/api/operate/dead/replays/{row.pk}/answer"
    assert (await staff.get(path)).status_code == 403
    assert (await administrator.get(path)).json() == {"answer": "half secret of r1"}
    assert [entry[0] for entry in await audited()] == [
        "replay dead letters",
        "replay dead letters",
        "look at a replay's answer",
    ]


@pytest.mark.parametrize(
    "changes", [None, {"prompt": "another question"}, {"sampling": {"max_tokens": 1}}]
)
async def test_the_user_gets_the_answer_where_the_job_had_failed(
    letters: FakeClient,
    member: httpx.AsyncClient,
    staff: httpx.AsyncClient,
    changes: dict[str, Any] | None,
) -> None:
    letters.script = lambda job: [
        Delta(request_id=job.request_id, text="one"),
        Failed(request_id=job.request_id, seq=1, code="given_up", message="lost 3 times"),
    ]
    home, answer = await begin(member, "one two")
    await until(lambda: not writer_of(answer))
    job = letters.jobs[-1]
    letters.memory.put("", names.DEAD_QUEUE, encode(job), HEADERS)
    letters.script = echo
    body = {"ids": [job.request_id], "changes": changes}
    assert (await staff.post("/api/operate/dead/replay", json=body)).status_code == 202
    (row,) = await ended(1)
    message = (await member.get(home)).json()["messages"][-1]
    shown = (message["status"], message["content"], message["error"], message["node"])
    if changes is None:
        assert shown == ("done", "one two", None, "n1")
    else:
        assert shown == ("failed", "one", "lost 3 times", ""), "it is not what the user asked for"
    assert (row.state, row.given) == ("answered", changes is None)


async def test_a_replayed_answer_is_read_as_its_own_run_marks_it(
    letters: FakeClient, member: httpx.AsyncClient, staff: httpx.AsyncClient
) -> None:
    letters.script = lambda job: [
        Failed(request_id=job.request_id, code="given_up", message="lost 3 times")
    ]
    _, answer = await begin(member, "one two")
    await until(lambda: not writer_of(answer))
    job = letters.jobs[-1]
    letters.memory.put("", names.DEAD_QUEUE, encode(job), HEADERS)
    letters.script = lambda job: [
        Start(request_id=job.request_id, node="n1", reasoning_format="think"),
        Delta(request_id=job.request_id, text="<think>Hm</think>Yes"),
        Finished(request_id=job.request_id, reason="stop"),
    ]
    body = {"ids": [job.request_id]}
    assert (await staff.post("/api/operate/dead/replay", json=body)).status_code == 202
    (row,) = await ended(1)
    assert row.given
    message = await Message.objects.aget(request_id=job.request_id)
    assert (message.content, message.reasoning_format) == ("<think>Hm</think>Yes", "think")


async def test_a_continued_answer_keeps_the_text_that_its_user_has(
    letters: FakeClient, member: httpx.AsyncClient, staff: httpx.AsyncClient
) -> None:
    letters.script = lambda job: [
        Failed(request_id=job.request_id, code="given_up", message="lost 3 times")
    ]
    home, answer = await begin(member, "one two three")
    await until(lambda: not writer_of(answer))
    job = msgspec.structs.replace(letters.jobs[-1], delivered="1st")
    letters.memory.put("", names.DEAD_QUEUE, encode(job), HEADERS)
    rows = Message.objects.filter(request_id=job.request_id)
    await rows.aupdate(content="1st", moved=2, ttft_ms=900, seconds=40.0)
    letters.script = echo
    body = {"ids": [job.request_id]}
    assert (await staff.post("/api/operate/dead/replay", json=body)).status_code == 202
    (row,) = await ended(1)
    message = (await member.get(home)).json()["messages"][-1]
    assert (row.given, message["content"]) == (True, "1st two three")
    figures = await rows.values_list("moved", "ttft_ms", "seconds").aget()
    assert figures == (0, None, 0.0), "those of the run that failed"


async def test_a_replay_that_fails_returns_its_letter(
    letters: FakeClient, staff: httpx.AsyncClient
) -> None:
    letters.script = lambda job: [
        Failed(request_id=job.request_id, code="engine", message="it broke")
    ]
    answer = await staff.post("/api/operate/dead/replay", json={"ids": ["r1", "r2"]})
    assert answer.status_code == 202
    broke, nowhere = await ended(2)
    assert (broke.state, broke.error) == ("failed", "it broke")
    assert nowhere.error == "there is no tree of the model 'gone' now"
    assert (await listed(staff))[:2] == ["r1", "r2"]


async def test_a_job_is_changed_before_it_runs_again(
    letters: FakeClient, staff: httpx.AsyncClient
) -> None:
    changes = {"model": "big", "prompt": "say this", "sampling": {"max_tokens": 9}}
    body = {"ids": ["r2"], "changes": changes}
    assert (await staff.post("/api/operate/dead/replay", json=body)).status_code == 202
    (row,) = await ended(1)
    assert (row.state, row.model, row.answer) == ("answered", "big", "say this")
    job = letters.jobs[-1]
    assert (job.messages, job.prompt, job.sampling.max_tokens) == (None, "say this", 9)
    assert job.sampling.seed == 7
    (entry,) = [entry async for entry in AuditEntry.objects.all()]
    assert entry.detail == "r2 with another model, prompt, sampling"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ids": []}, "ids"),
        ({"ids": ["r1", "r2"], "changes": {"model": "big"}}, "changes"),
        ({"ids": ["r1"], "changes": {"sampling": {"top_p": 9}}}, "changes.sampling"),
        ({"ids": ["r1"], "changes": {"sampling": {"topp": 1}}}, "changes.sampling"),
        ({"ids": ["r1"], "changes": {"messages": []}}, "changes.messages"),
    ],
)
async def test_what_makes_no_job_is_refused(
    letters: FakeClient, staff: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await staff.post("/api/operate/dead/replay", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)
    assert len(await listed(staff)) == 3
    assert letters.jobs == []


async def test_what_is_no_job_can_only_be_dropped(
    letters: FakeClient, staff: httpx.AsyncClient
) -> None:
    garbage = (await listed(staff))[-1]
    refused = await staff.post("/api/operate/dead/replay", json={"ids": [garbage]})
    assert refused.status_code == 400
    assert "it can only be read and dropped" in refused.json()["error"]["message"]
    dropped = await staff.post("/api/operate/dead/drop", json={"ids": [garbage]})
    assert dropped.json() == {"dropped": 1}
    assert await listed(staff) == ["r1", "r2"]


async def test_dropping_is_all_or_nothing(letters: FakeClient, staff: httpx.AsyncClient) -> None:
    path = "/api/operate/dead/drop"
    assert (await staff.post(path, json={"ids": ["r1", "nope"]})).status_code == 404
    assert (await staff.post(path, json={"ids": ["r1"], "all": True})).status_code == 400
    assert (await staff.post(path, json={})).status_code == 400
    assert len(await listed(staff)) == 3
    assert (await staff.post(path, json={"all": True})).json() == {"dropped": 3}
    assert await listed(staff) == []
    assert (await audited())[-1] == ("drop dead letters", "all", "dropped 3")


async def test_letters_return_when_the_process_stops(
    letters: FakeClient, staff: httpx.AsyncClient
) -> None:
    letters.script = lambda job: []
    await staff.post("/api/operate/dead/replay", json={"ids": ["r1"]})
    await letters.submitted.wait()
    await app().replays.stop()
    assert (await listed(staff))[0] == "r1"
    assert letters.cancelled == [(letters.jobs[-1].request_id, 2)]
    await DeadReplay.objects.all().aupdate(updated=timezone.now() - timedelta(seconds=60))
    (row,) = await store.latest(10)
    assert (row.state, row.error) == ("failed", store.INTERRUPTED)


async def test_the_stream_says_how_many_letters_there_are(
    letters: FakeClient, staff: httpx.AsyncClient
) -> None:
    letters.queue_depths[names.DEAD_QUEUE] = 3
    from api.operate.dead.endpoints import _events

    events = _events()
    first = json.loads((await anext(events)).decode().partition("data: ")[2])
    assert first == {"waiting": 3, "changes": 0, "replays": []}
    await events.aclose()
