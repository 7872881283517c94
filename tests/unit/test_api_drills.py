"""Drills over HTTP: who may start one, what it says beforehand, what is stored of it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from api.context import app
from api.operate.drills import store
from api.operate.drills.models import Drill, State
from broker.broadcasts import Broadcasts
from broker.drill_messages import DrillCounts
from broker.encoding import decode, encode
from broker.frame_router import FrameRouter
from broker.host_messages import AnyHostRequest, HostNode, HostResult, HostState, KillNode
from broker.job_messages import Answer, JobReport, RunningJob
from broker.memory import MemorySession
from broker.reply_tokens import ReplyTokens
from broker.session import Delivery
from broker.shared_objects import declare_shared
from broker.wire import Delta, Failed, Job, ResumeRequest, Start
from tests.unit.api_site import FakeClient, browser, log_in, make_user, node_state, until
from tests.unit.test_api_tree import EDGES, overview_of
from topology import names

PATH = "/api/operate/drills"


class FakeAgent:
    """The agent of the host `here`, which runs n1; `killed`: what it was asked to kill."""

    def __init__(self, session: MemorySession) -> None:
        self.drills = True
        self.answers = True
        self.unsaid: list[HostResult] = []
        self.killed: list[str] = []
        self._session = session

    async def open(self) -> None:
        queue = names.agent("here")
        await self._session.declare_queue(queue, exclusive=True)
        await self._session.consume(queue, self._on_request, prefetch=10)
        self.tell()

    def tell(self, *results: HostResult) -> None:
        state = HostState(
            name="here",
            host="here",
            sent=time.time(),
            cpus=2,
            memory=1,
            memory_free=1,
            engine="echo",
            max_nodes=9,
            nodes=(HostNode(name="n1", state="running", pid=1),),
            results=results,
            drills=self.drills,
        )
        self._session.publish(names.EVENTS_EXCHANGE, names.agent_key("here"), encode(state))

    def _on_request(self, delivery: Delivery) -> None:
        delivery.ack()
        request: AnyHostRequest = decode(delivery.body, AnyHostRequest)
        assert isinstance(request, KillNode)
        self.killed.append(request.node)
        result = HostResult(number=request.number, accepted=True)
        if self.answers:
            self.tell(result)
        else:
            self.unsaid.append(result)


@pytest_asyncio.fixture
async def agent(fake: FakeClient) -> AsyncIterator[FakeAgent]:
    """root -> (n1, n2); n1 runs one job."""
    await Drill.objects.all().adelete()
    fake.reports.publish(overview_of(EDGES))
    fake.states["root"] = node_state("root", engine="none", slots=0, parent=None)
    fake.states["n1"] = node_state("n1", running=1, status="busy")
    fake.states["n2"] = node_state("n2")
    running = RunningJob(
        request_id="r1",
        user="ada",
        job_class="interactive",
        created=0.0,
        seconds=1.0,
        tokens=3,
        trail=("root", "n1"),
    )
    report = JobReport(node="n1", model="tiny", waiting_count=0, batch_count=0, running=(running,))
    fake.job_watch.script = lambda question: [Answer(number="", node="n1", report=report)]
    session = fake.memory.session()
    await declare_shared(session)
    await fake.hosts.open(session)
    await fake.drills.open(session)
    agent = FakeAgent(fake.memory.session())
    await agent.open()
    await until(fake.hosts.states)
    yield agent
    await app().drills.stop()


@pytest_asyncio.fixture
async def administrator(fake: FakeClient) -> AsyncIterator[httpx.AsyncClient]:
    async with browser() as client:
        await log_in(client, await make_user(is_staff=True, is_superuser=True))
        yield client


def router_of(fake: FakeClient) -> FrameRouter:
    """What passes frames to the streams of a real client."""
    return FrameRouter(
        fake.streams,
        Broadcasts(),
        ReplyTokens(),
        send_to_node=lambda node, message: None,
        start_over=lambda stream: None,
        drills=fake.drills,
    )


async def last_entry(client: httpx.AsyncClient) -> dict[str, str]:
    entries: list[dict[str, str]] = (await client.get("/api/operate/audit")).json()["entries"]
    return entries[0]


async def drills(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await client.get(PATH)).json()["drills"]
    return listed


async def test_a_plan_says_what_would_be_hit_and_hits_nothing(
    staff: httpx.AsyncClient, agent: FakeAgent
) -> None:
    plan = (await staff.get(f"{PATH}/plan", params={"node": "n1"})).json()
    assert (plan["host"], plan["refusal"], plan["running_count"]) == ("here", "", 1)
    assert plan["running"] == [{"request_id": "r1", "user": "ada", "seconds": 1.0, "tokens": 3}]
    assert (await staff.get(f"{PATH}/plan", params={"node": "n9"})).status_code == 404
    assert agent.killed == []


async def test_staff_see_drills_and_start_none(staff: httpx.AsyncClient, agent: FakeAgent) -> None:
    assert (await staff.get(PATH)).json() == {"drills": [], "may_start": False}
    assert (await staff.post(PATH, json={"node": "n1"})).status_code == 403
    assert agent.killed == []


async def test_a_drill_counts_and_is_recorded(
    administrator: httpx.AsyncClient, agent: FakeAgent, fake: FakeClient
) -> None:
    fake.script = lambda job: [
        Start(request_id=job.request_id, node="n1", incarnation="b1"),
        Delta(request_id=job.request_id, seq=1, text="one "),
    ]
    job = Job(request_id="r1", model="tiny", reply_to="", created=0.0, prompt="p")
    stream = await fake.submit(job)
    started = await administrator.post(PATH, json={"node": "n1"})
    assert started.status_code == 202, started.text
    assert agent.killed == ["n1"]
    again = await administrator.post(PATH, json={"node": "n1"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "refused")
    assert "another drill is running" in (await last_entry(administrator))["result"]

    router = router_of(fake)
    router.on_frame(ResumeRequest(request_id="r1", node="n2", incarnation="b2", number=1))
    attempt = stream.attempt
    router.on_frame(Start(request_id="r1", attempt=attempt, node="n2", incarnation="b2"))
    router.on_frame(Delta(request_id="r1", attempt=attempt, seq=1, text="two"))
    fake.change(node_state("n1", pid=7))
    await app().drills.settled(lambda counts, seconds: None)
    [drill] = await drills(administrator)
    counts = [drill[name] for name in ("affected", "moved", "lost", "open", "processes")]
    assert (drill["state"], counts) == ("done", [1, 1, 0, 0, 1])
    assert 0 < drill["slowest"] < 5
    assert 0 < drill["back"] < 5
    entries = (await administrator.get("/api/operate/audit")).json()["entries"]
    entry = next(each for each in entries if each["result"].startswith("1 job affected"))
    assert (entry["action"], entry["target"]) == ("drill", "n1")
    assert "1 moved" in entry["result"]


@pytest.mark.parametrize("began", [True, False])
async def test_a_job_counts_as_soon_as_another_node_asks_for_it(
    agent: FakeAgent, fake: FakeClient, began: bool
) -> None:
    """Although it fails before it has begun there; `began`: it had at the node that was killed."""
    if began:
        fake.script = lambda job: [Start(request_id=job.request_id, node="n1", incarnation="b1")]
    else:
        fake.script = lambda job: []
    await fake.submit(Job(request_id="r1", model="tiny", reply_to="", created=0.0, prompt="p"))
    await fake.drills.prepare("d1", "n1", [])
    fake.drills.killed(["r1"], [])
    await until(lambda: fake.drills.sums().affected == 1)
    router = router_of(fake)
    router.on_frame(ResumeRequest(request_id="r1", node="n2", incarnation="b2", number=1))
    stream = fake.streams["r1"]
    end = Failed(request_id="r1", attempt=stream.attempt, code="engine", message="oom")
    router.on_frame(end)
    fake.drills.on_closed(stream)
    await until(lambda: fake.drills.sums().lost == 1)
    fake.drills.end()


async def test_what_has_not_gone_on_in_time_is_lost(
    administrator: httpx.AsyncClient,
    agent: FakeAgent,
    fake: FakeClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums = DrillCounts(process="api-test", number="d", affected=2, moved=1, open=1)
    monkeypatch.setattr(fake.drills, "sums", lambda: sums)
    conductor = app().drills
    monkeypatch.setattr(conductor, "_until_back", never)
    entry = await store_entry()
    drill = await conductor.start("ada", "n1", 0.1, entry)
    await conductor.settled(lambda counts, seconds: None)
    assert (drill.state, drill.lost, drill.open, drill.back) == (State.DONE, 1, 0, None)
    await entry.arefresh_from_db()
    assert "1 lost" in entry.result
    assert "not back" in entry.result


@pytest.mark.parametrize("kills", [True, False])
async def test_an_agent_that_answers_late_does_not_stop_the_drill(
    agent: FakeAgent, fake: FakeClient, monkeypatch: pytest.MonkeyPatch, kills: bool
) -> None:
    monkeypatch.setattr("broker.host_watch.ANSWER_SECONDS", 0.05)
    agent.answers = False
    entry = await store_entry()
    conductor = app().drills
    drill = await conductor.start("ada", "n1", 1.2, entry)
    if kills:
        fake.change(node_state("n1", pid=7))
    await conductor.settled(lambda counts, seconds: None)
    await entry.arefresh_from_db()
    if kills:
        assert (drill.state, drill.back is None) == (State.DONE, False)
        assert "the node was back" in entry.result
    else:
        reason = "n1 was not killed: the agent of here does not answer"
        assert (drill.state, drill.note, entry.result) == (State.FAILED, reason, reason)
    assert fake.drills.tally is None


async def test_whoever_started_a_drill_may_leave(agent: FakeAgent, fake: FakeClient) -> None:
    agent.answers = False
    entry = await store_entry()
    conductor = app().drills
    starting = asyncio.create_task(conductor.start("ada", "n1", 60.0, entry))
    await until(lambda: agent.killed)
    starting.cancel()
    [drill] = await store.latest(1)
    assert drill.state == State.RUNNING
    agent.answers = True
    fake.change(node_state("n1", pid=7))
    agent.tell(*agent.unsaid)
    await conductor.settled(lambda counts, seconds: None)
    await drill.arefresh_from_db()
    await entry.arefresh_from_db()
    assert (drill.state, "the node was back" in entry.result) == (State.DONE, True)


async def test_a_drill_whose_process_ends_is_stored_as_ended(
    agent: FakeAgent, fake: FakeClient
) -> None:
    entry = await store_entry()
    drill = await app().drills.start("ada", "n1", 60.0, entry)
    await app().drills.stop()
    await entry.arefresh_from_db()
    assert (drill.state, drill.note, entry.result) == (
        State.FAILED,
        store.INTERRUPTED,
        store.INTERRUPTED,
    )
    await until(lambda: fake.drills.tally is None)


async def never(*_: object) -> float:
    await asyncio.Event().wait()
    return 0.0


async def store_entry() -> Any:
    from api.operate.audit.store import begin_command

    return await begin_command("drill", "n1")


@pytest.mark.parametrize(
    ("node", "reason"),
    [("n2", "no agent runs n2"), ("n3", "n3 is down already"), ("n1", "CANOPY_DRILLS=1")],
)
async def test_a_drill_is_refused_in_one_sentence(
    administrator: httpx.AsyncClient,
    agent: FakeAgent,
    fake: FakeClient,
    node: str,
    reason: str,
) -> None:
    agent.drills = False
    agent.tell()
    await until(lambda: not fake.hosts.states()["here"].drills)
    answer = await administrator.post(PATH, json={"node": node})
    assert answer.status_code == 409
    assert reason in answer.json()["error"]["message"]
    assert reason in (await last_entry(administrator))["result"]
    assert (agent.killed, await drills(administrator)) == ([], [])


async def test_drills_of_dead_processes_end_and_few_are_kept(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_DRILLS", 3)
    for number in range(5):
        drill = await store.begin("ada", f"n{number}", "here")
        with pytest.raises(store.DrillRuns):
            await store.begin("ada", "n1", "here")
        drill.updated = drill.updated - 2 * store.SILENT
        await drill.asave()
    kept = await store.latest(10)
    assert [drill.node for drill in kept] == ["n4", "n3", "n2"]
    assert {(drill.state, drill.note) for drill in kept} == {("failed", store.INTERRUPTED)}
