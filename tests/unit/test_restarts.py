"""What becomes of jobs whose nodes, engines or readers fail: on the in-memory broker, step by step."""

import asyncio
from functools import partial

import msgspec
import pytest

from broker import client as broker_client
from broker.errors import ConnectionLost, NoTree, Unavailable
from broker.stream import Stream
from broker.wire import (
    MAX_ATTEMPTS,
    Adopt,
    AnyFrame,
    Attach,
    Cancel,
    Delta,
    Failed,
    Finished,
    Interrupted,
    Job,
    ResumeRequest,
    Start,
    Waiting,
    decode,
    encode,
)
from tests.unit.cluster import Cluster, HandEngine, read, until
from topology import names
from worker import engine_supervisor


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


# ---- the stream alone


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


# ---- nodes


async def lose_run(cluster: Cluster, request_id: str) -> str:
    """Kills the node on which the request runs, once its reader knows that it does; returns the node's name."""
    await until(lambda: cluster.where(request_id))
    name = str(cluster.where(request_id))
    stream = cluster.client.stream(request_id)
    assert stream is not None
    await until(lambda: stream.node == name and stream._running)
    await cluster.kill(name)
    return name


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


async def test_an_engine_that_fails_is_restarted_and_its_jobs_go_on_elsewhere() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a") == "n1")
        await cluster.add("n2", "root")
        cluster.engine("n1").say("a", "half", token=3)
        cluster.engine("n1").fail("a")
        await until(lambda: cluster.where("a") == "n2")
        assert cluster.engine("n2").jobs["a"].delivered == "half"
        assert cluster.engine("n2").jobs["a"].delivered_ids == (3,)
        cluster.engine("n2").say("a", " and half")
        cluster.engine("n2").finish("a")
        text, frames = await read(stream)
        assert text == "half and half"
        assert frames[-1].completion_tokens == 2  # type: ignore[union-attr]
        await until(lambda: cluster.engine("n1").starts == 2)
        await until(lambda: cluster.nodes["n1"].state().status == "idle")
        again = [await cluster.ask(f"r{number}") for number in range(2)]
        await until(lambda: {cluster.where("r0"), cluster.where("r1")} == {"n1", "n2"})
        for each in again:
            await each.aclose()


class Sick(HandEngine):
    """Starts again only when the test lets it."""

    def __init__(self) -> None:
        super().__init__("m", 1)
        self.well = True

    async def start(self) -> None:
        if not self.well:
            raise RuntimeError("no such device")
        await super().start()


async def test_a_node_without_a_working_engine_says_so_and_gets_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_supervisor, "RESTART_SECONDS", (0.01, 0.01))
    async with Cluster() as cluster:
        await cluster.add("root")
        engine = Sick()
        await cluster.add("n1", "root", engine=engine)
        await cluster.ask("a")
        await until(lambda: cluster.where("a"))
        engine.well = False
        engine.fail("a")
        await until(lambda: cluster.nodes["root"].state().held == 1)
        await until(lambda: "no such device" in cluster.nodes["n1"].state().detail)
        assert cluster.nodes["n1"].state().status == "failed"
        engine.well = True
        await until(lambda: cluster.where("a") == "n1")
        assert cluster.nodes["n1"].state().detail == ""


async def test_a_hung_step_is_ended_by_the_watchdog() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root", step_seconds=0.05)
        await cluster.ask("a")
        await until(lambda: cluster.where("a") == "n1")
        await cluster.add("n2", "root")
        cluster.engine("n1").hanging = 99.0
        await until(lambda: cluster.where("a") == "n2")
        cluster.engine("n1").hanging = 0.0
        await until(lambda: cluster.engine("n1").starts == 2)


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


async def test_a_node_that_dies_while_it_leaves_can_still_be_found() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.ask("a")
        await until(lambda: cluster.where("a") == "n1")
        await cluster.kill("root")
        leaving = asyncio.create_task(cluster.end("n1"))
        await until(lambda: not cluster.nodes["n1"].dispatcher.accepting)
        await cluster.kill("n1")
        await leaving
        assert cluster.broker.queues[names.node("n1")].ready
        assert (names.node("root"), "n1", names.node("n1")) in cluster.broker.bindings


async def test_a_job_that_ends_while_it_asks_is_heard_though_its_attempt_was_granted() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        stream = await cluster.ask("a", seconds_left=0.3)
        await until(lambda: cluster.nodes["root"].state().held == 1)
        await cluster.kill("root")
        cluster.client._grant = lambda stream, asking: stream.grant(asking)  # type: ignore[method-assign]
        await cluster.add("root")
        await cluster.add("n1", "root")
        _, frames = await read(stream)
        assert stream.attempt == 2
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == "expired"


# ---- cancel


@pytest.mark.parametrize(("user", "ends"), [("ada", True), ("bob", False), ("", True)])
async def test_only_its_user_cancels_a_job(user: str, ends: bool) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a", user="ada")
        await until(lambda: cluster.where("a"))
        cluster.client.cancel("a", user)
        await cluster.client.control("n1", Cancel(request_id="somebody else's"))
        if ends:
            _, frames = await read(stream)
            assert isinstance(frames[-1], Finished)
            assert frames[-1].reason == "cancelled"
            await until(lambda: cluster.where("a") is None)
        else:
            await until(lambda: len(cluster.nodes["n1"].jobs._cancelled) == 2)
            assert cluster.where("a") == "n1"


async def test_frames_that_nobody_reads_end_the_run_though_the_cancel_was_lost() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a"))
        cluster.client._close(stream)  # as if the broker had lost what `aclose` publishes
        cluster.engine("n1").say("a", "anyone?")
        await until(lambda: cluster.where("a") is None)


async def test_a_job_whose_cancel_was_said_while_the_root_was_away_ends_when_it_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.reply_channel.ASK_SECONDS", 0.01)
    monkeypatch.setattr(broker_client, "REPEAT_SECONDS", 0.02)
    async with Cluster() as cluster:
        await cluster.add("root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.nodes["root"].state().held == 1)
        await cluster.kill("root")
        await stream.aclose()
        await cluster.add("root")
        await cluster.add("n1", "root")
        await until(lambda: cluster.nodes["n1"].dispatcher.finished == 1)
        await until(lambda: not cluster.sessions["n1"].unsettled)
        assert cluster.engine("n1").started == []


# ---- the reader's own connection


async def test_a_stream_outlives_the_connection_of_its_reader() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream, waiting = await cluster.ask("a"), await cluster.ask("b")
        await until(lambda: cluster.where("a") == "n1")
        cluster.engine("n1").say("a", "half")
        await until(lambda: stream.text == "half")
        cluster.client_session.lose(ConnectionLost("cut"))
        await until(lambda: cluster.engine("n1").jobs["a"].attempt == 2 and cluster.where("a"))
        assert cluster.engine("n1").jobs["a"].delivered == "half"
        cluster.engine("n1").say("a", " and half")
        cluster.engine("n1").finish("a")
        text, frames = await read(stream)
        assert text == "half and half"
        assert any(isinstance(frame, Waiting) and "connection" in frame.reason for frame in frames)
        await until(lambda: cluster.where("b"))
        cluster.engine("n1").finish("b")
        _, frames = await read(waiting)
        assert isinstance(frames[-1], Finished)
        assert stream.faults == waiting.faults == ()
        await until(
            lambda: not cluster.sessions["n1"].unsettled and not cluster.sessions["root"].unsettled
        )


async def test_a_stream_does_not_wait_for_a_broker_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker_client, "PATIENCE_SECONDS", 0.0)
    async with Cluster() as cluster:
        await cluster.add("root")
        stream = await cluster.ask("a")

        async def refused() -> None:
            raise ConnectionLost("refused")

        cluster.client._connect = refused  # type: ignore[assignment]
        cluster.client_session.lose(ConnectionLost("gone"))
        _, frames = await read(stream)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].retryable


async def test_during_an_alarm_a_job_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        session = cluster.client_session
        session.alarm(True)
        with pytest.raises(Unavailable, match="memory or disk"):
            await cluster.ask("a")
        session.alarm(False)
        monkeypatch.setattr(
            session, "publish", lambda *_, **__: asyncio.get_running_loop().create_future()
        )
        asking = asyncio.create_task(
            cluster.ask("b")
        )  # the alarm comes while the broker has not confirmed
        await until(lambda: cluster.client.stream("b"))
        session.alarm(True)
        with pytest.raises(Unavailable, match="memory or disk"):
            await asking
        assert cluster.client.stream("b") is None


async def test_during_an_alarm_a_run_waits_with_its_text() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: stream.started)
        cluster.sessions["n1"].alarm(True)
        cluster.engine("n1").say("a", "late")
        cluster.engine("n1").say("a", "r")
        await until(lambda: cluster.engine("n1").steps["a"].qsize() == 1)
        assert stream.text == ""
        cluster.sessions["n1"].alarm(False)
        await until(lambda: stream.text == "later")


async def test_the_beginning_of_the_first_run_is_told_once() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        streams = [await cluster.ask() for _ in range(3)]
        told: list[str] = []
        for stream in streams:
            stream.when_begun(partial(told.append, stream.request_id))
        assert told == []
        await cluster.add("n1", "root")
        await until(lambda: len(told) == 1)
        for stream in streams:
            await stream.aclose()  # the others will never begin
        assert sorted(told) == sorted(each.request_id for each in streams)


# ---- membership


async def test_children_that_died_while_their_parent_was_away_are_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.life.HEARTBEAT_SECONDS", 0.02)
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        stream = await cluster.ask("a")
        await until(lambda: cluster.where("a"))
        lost = cluster.sessions["root"]
        lost.lose(ConnectionLost("cut"))
        await cluster.kill("n1")
        await until(
            lambda: cluster.sessions["root"] is not lost and cluster.nodes["root"].status == "idle"
        )
        await cluster.add("n2", "root")
        await until(lambda: cluster.where("a") == "n2")
        cluster.engine("n2").finish("a")
        _, frames = await read(stream)
        assert isinstance(frames[-1], Finished)


async def test_a_node_whose_exchange_was_buried_with_its_former_life_gets_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.life.HEARTBEAT_SECONDS", 0.02)
    async with Cluster() as cluster:
        await cluster.article_tree()
        await until(lambda: cluster.nodes["n4"].membership._above == ("n1", "root"))
        await cluster.kill("n2")
        await until(
            lambda: (
                cluster.nodes["n1"].dispatcher.child("n4")
                and cluster.nodes["n1"].dispatcher.child("n5")
            )
        )
        sessions = dict(cluster.sessions)
        await cluster.add("n2", "n1")
        await cluster.sessions["n1"].delete_exchange(
            "canopy.node.n2"
        )  # decided before n2 had registered
        await until(lambda: len(cluster.nodes["n2"].dispatcher.children) == 2)
        assert all(
            cluster.sessions[name] is sessions[name] for name in ("n4", "n5")
        )  # nobody had to start over


async def test_an_orphan_passes_over_an_ancestor_that_cannot_take_it() -> None:
    async with Cluster() as cluster:
        await cluster.article_tree()
        await until(lambda: cluster.nodes["n4"].membership._above == ("n1", "root"))
        await cluster.sessions["n1"].delete_exchange("canopy.node.n1")
        await cluster.kill("n2")
        await until(lambda: cluster.nodes["root"].dispatcher.child("n4"))


async def test_a_node_adopts_a_dead_one_that_it_is_told_of() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        session = cluster.broker.session()
        await session.declare_queue(names.node("n9"))
        stream = await cluster.ask("a")
        await until(lambda: cluster.nodes["root"].state().held == 1)
        held = next(iter(cluster.nodes["root"].jobs.waiting)).job
        cluster.broker.put(
            "", names.node("n9"), encode(msgspec.structs.replace(held, request_id="b"))
        )
        assert await cluster.client.control("root", Adopt(node="n9"))
        await until(lambda: not cluster.broker.queues[names.node("n9")].ready)
        await until(lambda: stream.waiting == "no node is connected")


@pytest.mark.parametrize("parent", ["n1", "n2", "n9"])
async def test_a_node_does_not_hang_below_itself_its_child_or_nobody(parent: str) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.add("n2", "n1")
        assert await cluster.client.control("n1", Attach(parent=parent))
        await cluster.client.control("n1", Cancel(request_id="mark"))
        await until(lambda: cluster.nodes["n1"].jobs._cancelled)
        assert cluster.nodes["n1"].parent == "root"


async def test_two_moves_that_make_a_ring_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.life.HEARTBEAT_SECONDS", 0.02)
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root")
        await cluster.add("n2", "root")
        await asyncio.gather(
            cluster.client.control("n1", Attach(parent="n2")),
            cluster.client.control("n2", Attach(parent="n1")),
        )
        await until(lambda: "root" in {cluster.nodes["n1"].parent, cluster.nodes["n2"].parent})
        await until(lambda: reaches_root(cluster, "n1") and reaches_root(cluster, "n2"))


def reaches_root(cluster: Cluster, name: str) -> bool:
    for _ in range(5):
        name = cluster.nodes[name].parent or ""
        if name == "root":
            return True
    return False


async def test_a_standby_takes_over_the_name_and_the_line() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        streams = [await cluster.ask(f"r{number}") for number in range(3)]
        await until(lambda: cluster.nodes["root"].state().held == 3)
        standby = await cluster.stand_by("root")
        await cluster.kill("root")
        cluster.nodes["root"] = standby
        late = await cluster.ask("late")
        await until(lambda: standby.status == "idle")
        await cluster.add("n1", "root")
        for stream in (*streams, late):
            await until(lambda: cluster.where(stream.request_id))  # noqa: B023
            cluster.engine("n1").finish(stream.request_id)
            _, frames = await read(stream)
            assert isinstance(frames[-1], Finished)
        assert cluster.engine("n1").started == ["r0", "r1", "r2", "late"]


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


def stream_queue(cluster: Cluster) -> str:
    """The reply queue of the cluster's client."""
    return next(name for name in cluster.broker.queues if name.startswith(names.REPLY_PREFIX))


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


async def test_a_model_that_no_routing_key_can_name_has_no_tree() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n0", "root")
        for model in ("模" * 90, "\ud800"):
            with pytest.raises(NoTree):
                await cluster.client.submit(msgspec.structs.replace(job(), model=model))
        stream = await cluster.ask("a")
        await until(lambda: "a" in cluster.engine("n0").steps)
        cluster.engine("n0").finish("a")
        await read(stream)


async def test_a_dead_letter_fits_whatever_its_faults_say() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        node = await cluster.add("n0", "root")
        long = msgspec.structs.replace(job(), user="模" * 500, trail=("n0",) * 5000)
        for _ in range(2):
            assert await node.link.port.dead_letter(long, "x" * 10**6, ("\ud800" * 10**5,) * 100)
