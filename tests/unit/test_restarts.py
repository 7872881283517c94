"""What becomes of jobs whose runs are lost: on the in-memory broker, step by step."""

import msgspec
import pytest

from broker.encoding import decode, encode
from broker.stream import Stream
from broker.wire import (
    MAX_ATTEMPTS,
    AnyFrame,
    Delta,
    Failed,
    Finished,
    Interrupted,
    Job,
    ResumeRequest,
    Start,
    Waiting,
)
from tests.unit.cluster import Cluster, read, until
from topology import names


def job(request_id: str = "a") -> Job:
    return Job(request_id=request_id, model="m", reply_to="q", created=0.0, prompt="p")


def stream_of(*frames: AnyFrame) -> Stream:
    stream = Stream(job(), lambda _: None)
    for frame in frames:
        stream.push(frame)
    return stream


def run(attempt: int, *texts: str, incarnation: str = "b1") -> list[AnyFrame]:
    """The frames of a run that does not end."""
    start = Start(request_id="a", attempt=attempt, node="n1", incarnation=incarnation)
    deltas = [
        Delta(request_id="a", attempt=attempt, seq=seq, text=text)
        for seq, text in enumerate(texts, 1)
    ]
    return [start, *deltas]


async def lose_run(cluster: Cluster, request_id: str) -> str:
    """Kills the node that runs the request, once its reader knows; returns the node's name."""
    await until(lambda: cluster.where(request_id))
    name = str(cluster.where(request_id))
    stream = cluster.client.stream(request_id)
    assert stream is not None
    await until(lambda: stream.node == name and stream._running)
    await cluster.kill(name)
    return name


def stream_queue(cluster: Cluster) -> str:
    """The reply queue of the cluster's client."""
    return next(name for name in cluster.broker.queues if name.startswith(names.REPLY_PREFIX))


async def test_a_stream_grants_a_new_attempt_from_where_its_text_ends() -> None:
    stream = stream_of(*run(1, "one ", "two "))
    granted = stream.grant(ResumeRequest(request_id="a", node="n2", incarnation="b2", number=5))
    assert (granted.number, granted.attempt, granted.delivered) == (5, 2, "one two ")
    assert granted.faults == ("n1 died while it ran",)
    for frame in [*run(2, "three"), Finished(request_id="a", attempt=2, seq=2, reason="stop")]:
        assert stream.push(frame)
    assert (await read(stream))[0] == "one two three"


async def test_only_begun_runs_of_dead_nodes_count_against_a_job() -> None:
    stream = stream_of(Waiting(request_id="a", node="root", reason="no node"))
    asking = ResumeRequest(request_id="a", node="n2", incarnation="b2", number=1)
    assert stream.grant(asking).faults == ()  # nothing had begun
    stream.push(Start(request_id="a", attempt=2, node="n2", incarnation="b2"))
    assert (
        stream.grant(asking).faults == ()
    )  # the same life of the node: only its connection was lost
    stream.push(Start(request_id="a", attempt=3, node="n2", incarnation="b2"))
    stream.push(Interrupted(request_id="a", attempt=3, seq=1, reason="the node is leaving"))
    assert stream.grant(msgspec.structs.replace(asking, incarnation="b3")).faults == ()
    stream.push(Start(request_id="a", attempt=4, node="n2", incarnation="b3"))
    stream.push(Interrupted(request_id="a", attempt=4, seq=1, reason="out of memory", fault=True))
    assert stream.grant(asking).faults == ("n2: out of memory",)


async def test_a_missing_frame_is_noticed_and_a_repeated_one_ignored() -> None:
    stream = stream_of(*run(1, "one "))
    assert stream.push(Delta(request_id="a", attempt=1, seq=1, text="one "))
    assert stream.text == "one "
    assert not stream.push(Delta(request_id="a", attempt=1, seq=3, text="three "))
    assert stream.text == "one "


async def test_a_job_that_kills_its_nodes_is_given_up_and_its_neighbours_are_not() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n0", "root", slots=2)
        poison, good = await cluster.ask("poison"), await cluster.ask("good")
        await until(lambda: cluster.where("good"))
        for number in range(1, MAX_ATTEMPTS + 1):
            await lose_run(cluster, "poison")
            await cluster.add(f"n{number}", "root", slots=2)
        _, frames = await read(poison)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == "given_up"
        assert (
            "n0 died while it ran; n1 died while it ran; n2 died while it ran" in frames[-1].message
        )
        dead = cluster.broker.queues[names.DEAD_QUEUE].ready[0]
        assert decode(dead.body, Job).request_id == "poison"
        assert dead.headers["trail"][-1] == "n3"  # type: ignore[index]
        assert len(dead.headers["faults"]) == MAX_ATTEMPTS  # type: ignore[arg-type]
        await until(lambda: cluster.where("good"))
        cluster.engine(str(cluster.where("good"))).finish("good")
        _, frames = await read(good)
        assert isinstance(frames[-1], Finished)


async def test_on_its_last_attempt_a_job_runs_alone() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n0", "root", slots=2)
        await cluster.ask("suspect")
        for number in range(1, MAX_ATTEMPTS):
            await lose_run(cluster, "suspect")
            if number == MAX_ATTEMPTS - 1:
                await cluster.ask("neighbour")
            await cluster.add(f"n{number}", "root", slots=2)
        node = cluster.nodes[f"n{MAX_ATTEMPTS - 1}"]
        engine = cluster.engine(node.name)
        await until(lambda: node.jobs.run_lock.shared_blocked and len(engine.steps) == 1)
        first = next(iter(engine.steps))
        engine.finish(first)
        await until(lambda: first not in engine.steps and len(engine.steps) == 1)
        (second,) = engine.steps
        engine.finish(second)
        assert {first, second} == {"suspect", "neighbour"}
        await until(lambda: not node.jobs.busy)
        assert not node.dispatcher.starts_paused


async def test_a_job_that_came_twice_is_run_once() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root", slots=2)
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a"))
        first = cluster.engine("n1").jobs["a"]
        cluster.engine("n1").say("a", "half")
        await until(lambda: stream.text == "half")
        # as after a parent that died between the confirm of its forwarding and its acknowledgement
        cluster.broker.put(
            "", names.node("n1"), encode(msgspec.structs.replace(first, restarted=True))
        )
        await until(lambda: cluster.engine("n1").jobs["a"].attempt == 2)
        await until(lambda: cluster.nodes["n1"].dispatcher.running == 1)
        cluster.engine("n1").say("a", " and half")
        cluster.engine("n1").finish("a")
        text, frames = await read(stream)
        assert text == "half and half"
        assert sum(isinstance(frame, Finished) for frame in frames) == 1


async def test_a_copy_of_a_job_that_has_ended_is_dropped() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a"))
        copy = cluster.engine("n1").jobs["a"]
        cluster.engine("n1").finish("a")
        await read(stream)
        for restarted in (True, False):
            cluster.broker.put(
                "", names.node("root"), encode(msgspec.structs.replace(copy, restarted=restarted))
            )
        await until(
            lambda: (
                cluster.nodes["n1"].dispatcher.received == 3 and not cluster.nodes["n1"].jobs.busy
            )
        )
        await until(lambda: not cluster.sessions["n1"].unsettled)


async def test_a_leaving_node_interrupts_what_runs_and_nobody_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.life.GRACE_SECONDS", 0.05)
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a") == "n1")
        cluster.engine("n1").say("a", "half")
        await cluster.add("n2", "root")
        await cluster.end("n1")
        await until(lambda: cluster.where("a") == "n2")
        assert stream.faults == ()
        assert cluster.engine("n2").jobs["a"].delivered == "half"


async def test_a_job_that_ends_while_it_asks_is_heard_though_its_attempt_was_granted() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        stream = await cluster.ask("a", seconds_left=0.3)
        await until(lambda: cluster.nodes["root"].state().held == 1)
        await cluster.kill("root")
        cluster.client._router.grant = lambda stream, request: stream.grant(request)  # type: ignore[method-assign]
        await cluster.add("root")
        await cluster.add("n1", "root")
        _, frames = await read(stream)
        assert stream.attempt == 2
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == "expired"


async def test_a_restarted_job_goes_before_those_that_have_not_begun() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.ask("begun")
        await until(lambda: cluster.where("begun"))
        await cluster.add("n2", "root")
        for number in range(4):
            await cluster.ask(f"r{number}")
        await until(lambda: sum(cluster.nodes[name].state().held for name in ("n1", "n2")) == 3)
        await cluster.kill("n1")
        await until(lambda: cluster.nodes["n2"].state().held == 4)
        (running,) = cluster.engine("n2").steps
        cluster.engine("n2").finish(running)
        await until(lambda: cluster.where("begun") == "n2")


async def test_the_deadline_of_a_job_behind_others_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.life.HEARTBEAT_SECONDS", 0.02)
    async with Cluster() as cluster:
        await cluster.add("root")
        first = await cluster.ask("first")
        late = await cluster.ask("late", seconds_left=0.1)
        _, frames = await read(late)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == "expired"
        assert not first.ended


async def test_a_node_whose_frames_are_missing_loses_the_job_after_three_runs() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        node = await cluster.add("n0", "root")
        stream = await cluster.ask("a")
        for runs in range(1, MAX_ATTEMPTS + 1):
            await until(
                lambda runs=runs: len(cluster.engine("n0").started) == runs and stream._running
            )  # type: ignore[misc]
            lost = Delta(request_id="a", attempt=stream.attempt, seq=99, text="x")
            node.link.port.outbox.put(stream_queue(cluster), lost)
            await until(lambda runs=runs: len(stream.faults) == runs)  # type: ignore[misc]
        _, frames = await read(stream)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == "given_up"
        assert frames[-1].message.count("n0: a frame of its answer was missing") == MAX_ATTEMPTS
        assert len(cluster.engine("n0").started) == MAX_ATTEMPTS
        assert decode(cluster.broker.queues[names.DEAD_QUEUE].ready[0].body, Job).request_id == "a"


async def test_a_node_that_runs_a_job_it_should_give_up_ends_nothing_but_the_job() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        node = await cluster.add("n0", "root")
        stream = await cluster.ask("a")
        await until(lambda: stream._running)
        stream.faults = ("n0: x",) * MAX_ATTEMPTS
        lost = Delta(request_id="a", attempt=stream.attempt, seq=99, text="x")
        node.link.port.outbox.put(stream_queue(cluster), lost)
        _, frames = await read(stream)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == "given_up"
        await until(lambda: not node.jobs.busy)


async def test_half_a_character_harms_no_other_frame() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n0", "root", slots=2)
        odd, good = await cluster.ask("odd"), await cluster.ask("good")
        await until(lambda: len(cluster.engine("n0").steps) == 2)
        for stream in (odd, good):
            cluster.engine("n0").say(stream.request_id, "a\ud800b")
            cluster.engine("n0").finish(stream.request_id)
        assert (await read(odd))[0] == (await read(good))[0] == "a\ufffdb"


async def test_a_dead_letter_fits_whatever_its_faults_say() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        node = await cluster.add("n0", "root")
        long = msgspec.structs.replace(job(), user="模" * 500, trail=("n0",) * 5000)
        for _ in range(2):
            assert await node.link.port.dead_letter(long, "x" * 10**6, ("\ud800" * 10**5,) * 100)
