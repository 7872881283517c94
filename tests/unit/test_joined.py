"""A joined node: it serves like any other, and what it says is taken for what it may say."""

import asyncio
import time

import msgspec
import pytest

from broker.encoding import encode
from broker.errors import NotAdmitted
from broker.memory import MemorySession
from broker.session import JoinedNode
from broker.wire import (
    NO_RUN,
    AnyFrame,
    Attach,
    Cancel,
    Capacity,
    ChatMessage,
    Delta,
    Drain,
    Failed,
    Finished,
    Frames,
    Job,
    Leave,
    ResumeRequest,
    Start,
)
from tests.unit.cluster import Cluster, read, until
from topology import names
from worker import given_jobs
from worker.given_jobs import GivenJobs


async def _joined_tree(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.add("n1", "root")
    await cluster.add("room2", "root", joined=True)


def _thief(cluster: Cluster) -> MemorySession:
    """A second session with the credential of room2."""
    return cluster.broker.session(JoinedNode("room2", "m"))


async def _on_room2(cluster: Cluster) -> str:
    """A request that runs on the joined node; n1 has another one."""
    for _ in range(2):
        stream = await cluster.ask()
        await until(lambda: cluster.where(stream.request_id))  # noqa: B023
        if cluster.where(stream.request_id) == "room2":
            return stream.request_id
    raise AssertionError("no job came to the joined node")


async def test_a_joined_node_serves() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("room2", "root", joined=True)
        stream = await cluster.ask()
        await until(lambda: cluster.where(stream.request_id) == "room2")
        cluster.engine("room2").say(stream.request_id, "hello")
        cluster.engine("room2").finish(stream.request_id)
        text, frames = await read(stream)
        assert text == "hello"
        assert isinstance(frames[-1], Finished)
        assert "room2" in cluster.client.nodes()


async def test_it_hangs_below_its_parent_again_when_that_is_back() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        room2 = await cluster.add("room2", "n1", joined=True)
        await until(lambda: room2.membership._above == ("root",) or room2.membership._above == ())
        room2.membership._above = ("root",)
        await cluster.kill("n1")
        room2.announcer.send_all()
        await until(lambda: room2.parent == "root")
        stream = await cluster.ask()
        await until(lambda: cluster.where(stream.request_id) == "room2")


async def test_a_leaving_joined_node_gives_its_job_back_and_its_queue_goes() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("room2", "root", joined=True)
        stream = await cluster.ask(user="ada")
        await until(lambda: cluster.where(stream.request_id) == "room2")
        cluster.engine("room2").say(stream.request_id, "half ")
        async with asyncio.timeout(10):
            await cluster.end("room2")
        assert names.node("room2") not in cluster.broker.queues
        await cluster.add("n1", "root")
        await until(lambda: cluster.where(stream.request_id) == "n1")
        job = cluster.engine("n1").jobs[stream.request_id]
        assert (job.user, job.delivered) == ("ada", "half ")
        cluster.engine("n1").say(stream.request_id, "full")
        cluster.engine("n1").finish(stream.request_id)
        text, _ = await read(stream)
        assert text == "half full"


@pytest.mark.parametrize(
    ("model", "tree_engine", "says"),
    [("other", "", "root serves m; this node serves other"), ("m", "echo", "tree of engine echo")],
)
async def test_a_root_refuses_a_node_of_another_model_or_engine(
    model: str, tree_engine: str, says: str
) -> None:
    async with Cluster() as cluster:
        await cluster.add("root", tree_engine=tree_engine)
        with pytest.raises(Exception, match=says) as refusal:
            await cluster.add("n1", "root", model=model)
        assert "\n" not in str(refusal.value)
        if model == "m":  # of another model it does not even reach the root
            with pytest.raises(NotAdmitted, match=says):
                await cluster.add("room2", "root", model=model, joined=True)


async def test_frames_without_the_token_of_their_job_are_dropped() -> None:
    async with Cluster() as cluster:
        await _joined_tree(cluster)
        streams = [await cluster.ask() for _ in range(2)]
        await until(lambda: all(cluster.where(stream.request_id) for stream in streams))
        [theirs] = [s for s in streams if cluster.where(s.request_id) == "n1"]
        [own] = [s for s in streams if cluster.where(s.request_id) == "room2"]
        token = cluster.engine("room2").jobs[own.request_id].reply_token
        who = theirs.request_id
        lies: list[AnyFrame] = [
            Delta(request_id=who, seq=1, text="forged"),
            Delta(request_id=who, seq=1, text="forged", token=token),
            Failed(request_id=who, seq=NO_RUN, code="internal", message="forged", token="x"),
            ResumeRequest(request_id=who, seq=NO_RUN, node="room2", incarnation="", number=1),
            Start(request_id=own.request_id, node="n1", token=token),
        ]
        queue = theirs.job.reply_to or cluster.client._reply_queue
        for lie in lies:
            assert await _thief(cluster).publish("", queue, encode(Frames(frames=(lie,))))
        await until(lambda: cluster.client.refused_frames == len(lies))
        cluster.engine("n1").say(who, "true")
        cluster.engine("n1").finish(who)
        text, _ = await read(theirs)
        assert text == "true"


async def test_a_joined_node_commands_nobody() -> None:
    async with Cluster() as cluster:
        await _joined_tree(cluster)
        root, n1 = cluster.nodes["root"], cluster.nodes["n1"]
        stream = await cluster.ask()
        await until(lambda: cluster.where(stream.request_id))
        thief = _thief(cluster)
        forged = Capacity(node="n1", slots=900, free=900, received=0, finished=0)
        for message in (
            Drain(),
            Cancel(request_id=stream.request_id),
            Attach(parent="root"),
            Leave(node="n1"),
            forged,
        ):
            for node in ("root", "n1"):
                assert await thief.publish("", names.inbox(node), encode(message))
        await until(lambda: "may not send" in n1.warnings.text())
        await until(lambda: "may not send" in root.warnings.text())
        assert cluster.where(stream.request_id)
        assert n1.dispatcher.accepting
        assert n1.dispatcher.children == ()
        child = root.dispatcher.child("n1")
        assert child is not None
        assert child.slots == 1


async def test_of_the_slots_that_a_joined_node_claims_a_bounded_number_counts() -> None:
    async with Cluster() as cluster:
        await _joined_tree(cluster)
        root = cluster.nodes["root"]
        claim = Capacity(
            node="room2", slots=90_000, free=89_990, received=0, finished=0, model="m", number=9
        )
        assert await _thief(cluster).publish("", names.inbox("root"), encode(claim))
        await until(lambda: "it claims 90000 slots: 1024 count" in root.warnings.text())
        child = root.dispatcher.child("room2")
        assert child is not None
        assert (child.slots, child.free) == (1024, 1014)


async def test_a_node_that_is_not_a_child_reports_to_nobody() -> None:
    async with Cluster() as cluster:
        await _joined_tree(cluster)
        n1 = cluster.nodes["n1"]
        capacity = Capacity(node="room2", slots=9, free=9, received=0, finished=0, model="m")
        assert await _thief(cluster).publish("", names.inbox("n1"), encode(capacity))
        await asyncio.sleep(0.05)
        assert n1.dispatcher.children == ()


async def test_a_joined_node_of_another_tree_reaches_no_inbox() -> None:
    async with Cluster() as cluster:
        await _joined_tree(cluster)
        stranger = cluster.broker.session(JoinedNode("room3", "other"))
        for queue in (names.inbox("root"), names.node("root")):
            assert not await stranger.publish("", queue, encode(Drain()))


async def _given_back(cluster: Cluster, job: Job) -> None:
    assert await _thief(cluster).publish("", names.node("root"), encode(job), persistent=True)


async def test_an_invented_job_runs_nowhere() -> None:
    async with Cluster() as cluster:
        await _joined_tree(cluster)
        victim = await cluster.ask("victim", user="ada")
        await until(lambda: cluster.where("victim"))
        job = Job(
            request_id="victim",
            model="m",
            reply_to=cluster.client._reply_queue,
            created=time.time(),
            messages=(ChatMessage(role="user", content="forged"),),
            user="ada",
            work=1e9,
            attempt=7,
            reply_token="x" * 32,
        )
        before = cluster.client.refused_frames
        await _given_back(cluster, job)
        await until(lambda: cluster.client.refused_frames > before)
        await until(lambda: sum(n.dispatcher.running for n in cluster.nodes.values()) == 1)
        node = cluster.where("victim")
        assert node is not None
        cluster.engine(node).say("victim", "true")
        cluster.engine(node).finish("victim")
        text, _ = await read(victim)
        assert text == "true"


async def test_a_job_without_a_token_is_a_dead_letter_and_its_reader_hears_nothing() -> None:
    async with Cluster() as cluster:
        await _joined_tree(cluster)
        victim = await cluster.ask("victim")
        await until(lambda: cluster.where("victim"))
        job = Job(request_id="victim", model="m", reply_to=cluster.client._reply_queue, created=0)
        await _given_back(cluster, job)
        await until(lambda: cluster.broker.queues[names.DEAD_QUEUE].ready)
        assert not victim.ended


def _job(number: int, user: str) -> Job:
    return Job(request_id=f"r{number}", model="m", reply_to="", created=0, user=user)


def test_a_joined_node_has_no_more_jobs_of_a_user_than_it_was_given() -> None:
    given = GivenJobs()
    given.give("room2", _job(1, "ada"))
    given.give("room2", _job(1, "ada"))
    given.give("room2", _job(2, "bob"))
    assert given.possible_users("room2", {"ada": 900, "bob": 1, "eve": 5}) == {"ada": 1, "bob": 1}
    assert given.possible_users("room3", {"ada": 1}) == {}
    given.take_back("room2", _job(2, "x"))
    assert given.possible_users("room2", {"bob": 1}) == {}


def test_what_is_remembered_and_taken_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_jobs, "MAX_JOBS", 2)
    monkeypatch.setattr(given_jobs, "MAX_UNKNOWN", 1)
    given = GivenJobs()
    for number in range(3):
        given.give("room2", _job(number, "ada"))
    assert given.possible_users("room2", {"ada": 9}) == {"ada": 2}
    assert given.take_back("room2", _job(0, "ada")) is not None
    assert given.take_back("room2", _job(0, "ada")) is None


def test_a_job_that_runs_longer_than_it_is_remembered_is_still_its_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(given_jobs, "MAX_JOBS", 2)
    given = GivenJobs()
    long = given.give("room2", msgspec.structs.replace(_job(0, "ada"), work=7.0, key="ck-1"))
    for number in range(1, 4):
        given.give("room2", _job(number, "bob"))
    altered = msgspec.structs.replace(long, user="bob", work=1.0, job_class="batch")
    back = given.take_back("room2", altered)
    assert back is not None
    assert (back.user, back.work, back.key, back.job_class) == ("ada", 7.0, "ck-1", "interactive")
    assert back.signed_accounting == ""
    forged = long.signed_accounting.replace("ada", "bob")
    strangers = [
        ("room3", long),
        ("room2", msgspec.structs.replace(long, request_id="r1000")),
        ("room2", msgspec.structs.replace(long, signed_accounting=forged)),
        ("room2", msgspec.structs.replace(long, signed_accounting="")),
    ]
    for child, job in strangers:
        taken = given.take_back(child, job)
        assert taken is not None
        assert (taken.user, taken.job_class) == ("", "batch")


def test_more_is_taken_back_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_jobs, "MAX_UNKNOWN", 2)
    now = [0.0]
    given = GivenJobs(lambda: now[0])

    def taken() -> list[bool]:
        return [given.take_back("room2", _job(n, "ada")) is not None for n in range(4)]

    assert taken() == [True, True, False, False]
    now[0] = 1.0
    assert taken() == [True, False, False, False]
    now[0] = 1e6
    assert taken() == [True, True, False, False]


async def test_who_waits_for_a_job_that_is_not_taken_back_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(given_jobs, "MAX_UNKNOWN", 0)
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("room2", "root", joined=True)
        stream = await cluster.ask()
        await until(lambda: cluster.where(stream.request_id) == "room2")
        job = cluster.engine("room2").jobs[stream.request_id]
        cluster.nodes["root"].jobs.given.take_back("room2", job)  # as after a restart of the root
        wrong = msgspec.structs.replace(job, reply_token="x" * 32)
        before = cluster.client.refused_frames
        await _given_back(cluster, wrong)
        await until(lambda: cluster.client.refused_frames > before)
        assert not stream.ended
        await _given_back(cluster, job)
        _, frames = await read(stream)
        assert isinstance(frames[-1], Failed)
        assert "gave back more jobs" in frames[-1].message


async def test_a_job_that_comes_back_is_still_its_users() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        room2 = await cluster.add("room2", "root", joined=True)
        stream = await cluster.ask(user="ada", work=5.0)
        await until(lambda: cluster.where(stream.request_id) == "room2")
        root = cluster.nodes["root"]
        job = cluster.engine("room2").jobs[stream.request_id]
        altered = msgspec.structs.replace(job, user="bob", work=1e9)
        restored = root.jobs.given.take_back("room2", altered)
        assert restored is not None
        assert (restored.user, restored.work) == ("ada", 5.0)
        unsigned = msgspec.structs.replace(altered, signed_accounting="")
        unknown = root.jobs.given.take_back("room2", unsigned)
        assert unknown is not None
        assert (unknown.user, unknown.work, unknown.job_class) == ("", 1.0, "batch")
        assert room2.parent == "root"
