"""A node and its engine: start, slots, failures and restarts, on the in-memory broker."""

import asyncio

import pytest

from broker.stream import Stream
from broker.wire import (
    Failed,
    Finished,
    ResumeRequest,
)
from tests.unit.cluster import Cluster, HandEngine, read, until
from topology import names
from topology.dispatch import HoldHigh, Paper, Policy
from worker import engine_supervisor
from worker.engines.base import EngineUnavailable, PromptTooLong


class BrokenEngine(HandEngine):
    """Its model cannot be loaded."""

    async def start(self) -> None:
        raise EngineUnavailable("no such model")


class SlowEngine(HandEngine):
    """Its model is loaded when the test says so."""

    def __init__(self, model: str, slots: int) -> None:
        super().__init__(model, slots)
        self.loaded = asyncio.Event()

    async def start(self) -> None:
        await self.loaded.wait()


class MeasuringEngine(SlowEngine):
    """How many slots it has turns out when its model is loaded."""

    def __init__(self, *found: int) -> None:
        super().__init__("m", 8)
        self._found = iter(found)

    async def start(self) -> None:
        await super().start()
        self.slots = next(self._found)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PromptTooLong("5000 tokens, at most 4096"), "too_long"),
        (RuntimeError("bug"), "internal"),
    ],
)
async def test_a_failing_engine_fails_that_job_alone(error: Exception, code: str) -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root", slots=2)
        bad, good = await cluster.ask("bad"), await cluster.ask("good")
        await until(lambda: cluster.where("good"))
        cluster.engine("n1").steps["bad"].put_nowait(error)
        _, frames = await read(bad)
        assert isinstance(frames[-1], Failed)
        assert frames[-1].code == code
        cluster.engine("n1").finish("good")
        _, frames = await read(good)
        assert isinstance(frames[-1], Finished)


async def test_a_node_whose_engine_cannot_start_leaves_no_registration() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        with pytest.raises(EngineUnavailable):
            await cluster.add("n1", "root", engine=BrokenEngine("m", 1))
        assert names.node("n1") not in cluster.broker.queues
        assert names.node("n1") not in cluster.broker.exchanges


async def test_a_node_that_loads_is_seen_but_gets_nothing_and_can_be_told_to_leave() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        engine = SlowEngine("m", 1)
        adding = asyncio.create_task(cluster.add("n1", "root", engine=engine))
        await until(lambda: cluster.client.nodes().get("n1"))
        assert cluster.client.nodes()["n1"].status == "starting"
        await cluster.ask("a")
        await until(lambda: cluster.nodes["root"].state().held == 1)
        await cluster.end("n1")
        adding.cancel()
        assert names.node("n1") not in cluster.broker.queues
        assert engine.started == []


async def test_a_node_has_the_slots_that_its_engine_has_found_out() -> None:
    async with Cluster(HoldHigh) as cluster:
        root = await cluster.add("root")
        announced: list[int] = []
        hear = root.membership.on_capacity
        root.membership.on_capacity = lambda capacity: (
            announced.append(capacity.slots),
            hear(capacity),
        )[1]  # type: ignore[method-assign]
        engine = MeasuringEngine(3)
        adding = asyncio.create_task(cluster.add("n1", "root", engine=engine))
        await until(lambda: cluster.client.nodes().get("n1"))
        streams = [await cluster.ask(f"j{number}") for number in range(5)]
        engine.loaded.set()
        node = await adding
        await until(lambda: len(engine.steps) == 3)
        await until(lambda: root.state().held == 2)
        assert set(announced) - {0} == {3}  # nothing while it starts, and never the guess
        assert node.state().slots == 3
        assert node.state().status == "busy"
        await until(lambda: cluster.client.nodes()["n1"].slots == 3)
        for number, stream in enumerate(streams):
            await until(lambda: cluster.where(stream.request_id))  # noqa: B023
            engine.finish(f"j{number}")
            await read(stream)


async def test_fewer_slots_after_a_restart_take_none_from_those_that_have_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two restarted jobs wait for their readers in slots while the engine restarts."""
    async with Cluster(HoldHigh) as cluster:
        root = await cluster.add("root")
        await cluster.add("n0", "root", slots=2)
        streams = [await cluster.ask(name) for name in ("a", "b")]
        await until(lambda: cluster.where("b"))
        engine = MeasuringEngine(3, 1, 2)
        engine.loaded.set()
        node = await cluster.add("n1", "root", engine=engine)
        questions: list[tuple[Stream, ResumeRequest]] = []
        router = cluster.client._router
        monkeypatch.setattr(router, "grant", lambda *question: questions.append(question))
        await cluster.kill("n0")
        await until(lambda: len(questions) == 2)
        streams.append(await cluster.ask("c"))
        await until(lambda: cluster.where("c") == "n1")
        engine.fail("c")
        await until(lambda: node.dispatcher.slots == 1)
        assert node.dispatcher.running == 2
        assert node.dispatcher.subtree_free() == 0
        assert node.state().status == "busy"
        await until(lambda: [held.job.request_id for held in root.jobs.waiting] == ["c"])
        monkeypatch.undo()
        for question in questions:
            router.grant(*question)
        await until(lambda: set(engine.steps) == {"a", "b"})
        engine.finish("a")
        await until(lambda: "a" not in engine.steps)
        assert node.dispatcher.subtree_free() == 0  # one slot, and it is taken
        engine.finish("b")
        await until(lambda: cluster.where("c") == "n1")
        engine.fail("c")
        await until(lambda: node.dispatcher.slots == 2 and cluster.where("c") == "n1")
        engine.finish("c")
        for stream in streams:
            _, frames = await read(stream)
            assert isinstance(frames[-1], Finished)


class CrowdedEngine(HandEngine):
    """It has fewer slots while large jobs take its memory."""

    room = 3

    @property
    def usable_slots(self) -> int:
        return self.room


@pytest.mark.parametrize("policy", [HoldHigh, Paper])
async def test_jobs_wait_above_a_node_whose_memory_is_full(policy: type[Policy]) -> None:
    async with Cluster(policy) as cluster:
        root = await cluster.add("root")
        engine = CrowdedEngine("m", 3)
        node = await cluster.add("n1", "root", engine=engine)
        streams = [await cluster.ask("a")]
        await until(lambda: cluster.where("a") == "n1")
        engine.room = 1
        node.announcer.send_all()
        await until(lambda: root.dispatcher.subtree_free() == 0)
        streams.append(await cluster.ask("b"))
        waiting = root if policy is HoldHigh else node
        await until(lambda: len(waiting.jobs.waiting) == 1)
        engine.room = 3
        node.announcer.send_all()
        await until(lambda: cluster.where("b") == "n1")
        for stream in streams:
            engine.finish(stream.request_id)
            await read(stream)


class Sick(HandEngine):
    """Starts again only when the test lets it."""

    def __init__(self) -> None:
        super().__init__("m", 1)
        self.well = True

    async def start(self) -> None:
        if not self.well:
            raise RuntimeError("no such device")
        await super().start()


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
        assert [cluster.nodes[name].state().failed for name in ("n1", "n2")] == [1, 0]
        await until(lambda: cluster.engine("n1").starts == 2)
        await until(lambda: cluster.nodes["n1"].state().status == "idle")
        again = [await cluster.ask(f"r{number}") for number in range(2)]
        await until(lambda: {cluster.where("r0"), cluster.where("r1")} == {"n1", "n2"})
        for each in again:
            await each.aclose()


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
