"""The line at the root: whole trees on the in-memory broker under hold-high."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from broker.wire import AnyFrame, Drain, Failed, Start, Waiting
from tests.unit.cluster import Cluster, until
from topology import names
from topology.dispatch import HoldHigh

FLOOD = 20


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(HoldHigh) as cluster:
        yield cluster


async def serve(cluster: Cluster, node: str, jobs: int) -> list[str]:
    """Ends so many jobs on a node with one slot; returns them in the order of their starts."""
    engine = cluster.engine(node)
    for _ in range(jobs):
        await until(lambda: engine.steps)
        running = next(iter(engine.steps))
        engine.finish(running)
        await until(lambda running=running: running not in engine.steps)
    return engine.started


async def full(cluster: Cluster, waiting: int) -> None:
    await until(lambda: len(cluster.nodes["root"].jobs.waiting) == waiting)


async def test_a_flood_does_not_keep_another_user_waiting(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.add("n1", "root")
    for number in range(FLOOD):
        await cluster.ask(f"f{number}", user="flood")
    await full(cluster, FLOOD - 1)
    await cluster.ask("light", user="light")
    await full(cluster, FLOOD)
    assert "light" in (await serve(cluster, "n1", 3))[1:3]


async def test_batch_waits_for_interactive_and_work_is_what_counts(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.add("n1", "root")
    await cluster.ask("running", user="x")
    await until(lambda: cluster.where("running"))
    await cluster.ask("batch", user="b", job_class="batch")
    for number in range(3):
        await cluster.ask(f"long{number}", user="long", work=30)
    for number in range(3):
        await cluster.ask(f"short{number}", user="short", work=10)
    await full(cluster, 7)
    order = await serve(cluster, "n1", 8)
    assert order[-1] == "batch"
    assert order.index("short2") < order.index("long1")


async def test_a_user_runs_no_more_than_the_cap_wherever_there_are_free_slots(
    cluster: Cluster,
) -> None:
    await cluster.add("root", user_jobs=2)
    await cluster.add("n1", "root", slots=2)
    await cluster.add("n2", "root", slots=2)
    streams = [await cluster.ask(f"a{number}", user="ada") for number in range(4)]
    await full(cluster, 2)
    await cluster.ask("b", user="bob")
    await until(lambda: cluster.where("b"))
    assert len(cluster.nodes["root"].jobs.waiting) == 2
    await until(lambda: "2 of your jobs" in streams[3].waiting)
    where = cluster.where("a0")
    assert where is not None
    cluster.engine(where).finish("a0")
    await until(lambda: cluster.where("a2"))
    assert cluster.where("a3") is None


async def test_readers_hear_their_place_and_that_it_changes(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.add("n1", "root")
    streams = [await cluster.ask(f"r{number}") for number in range(4)]
    heard: list[tuple[int | None, bool]] = []

    async def listen() -> None:
        async for frame in streams[3]:
            if isinstance(frame, Waiting):
                heard.append((frame.position, frame.seconds is not None))

    listening = asyncio.create_task(listen())
    await until(lambda: heard == [(3, False)])
    await serve(cluster, "n1", 2)
    await until(lambda: heard[-1] == (1, True))
    await serve(cluster, "n1", 2)
    await listening
    assert cluster.nodes["root"].state().waited > 0


async def test_nothing_is_promised_while_no_node_takes_jobs(cluster: Cluster) -> None:
    """An estimate that was right becomes none at once, and the reason says why."""
    await cluster.add("root")
    await cluster.add("n1", "root")
    streams = [await cluster.ask(f"r{number}") for number in range(4)]
    frames: list[Waiting] = []

    async def listen() -> None:
        async for frame in streams[3]:
            if isinstance(frame, Waiting):
                frames.append(frame)

    listening = asyncio.create_task(listen())
    await until(lambda: frames)
    assert (frames[0].code, frames[0].slots) == ("busy", 1)
    await serve(cluster, "n1", 2)
    await until(lambda: frames[-1].seconds is not None)
    assert await cluster.client.control("n1", Drain())
    await until(lambda: frames[-1].code == "paused")
    assert (frames[-1].position, frames[-1].seconds, frames[-1].slots) == (1, None, 0)
    listening.cancel()


async def test_a_run_tells_its_way_and_the_wait_at_each_node(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.add("n1", "root")
    await cluster.add("n2", "n1")
    streams = [await cluster.ask(f"r{number}") for number in range(3)]
    await full(cluster, 1)
    waited_from = time.monotonic()
    await asyncio.sleep(0.05)
    cluster.engine("n2").finish("r1")
    starts = [frame async for frame in streams[2] if cluster_start(cluster, frame)]
    waited = time.monotonic() - waited_from
    assert isinstance(starts[0], Start)
    assert starts[0].trail == ("root", "n1", "n2")
    at_root, at_n1, at_n2 = starts[0].waits
    assert 0.05 <= at_root <= waited + 0.1
    assert max(at_n1, at_n2) < at_root


def cluster_start(cluster: Cluster, frame: AnyFrame) -> bool:
    """True for Start; the run ends then."""
    if isinstance(frame, Start):
        cluster.engine(frame.node).finish(frame.request_id)
        return True
    return False


async def test_a_cancelled_job_leaves_the_line_at_once(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.add("n1", "root")
    for number in range(4):
        await cluster.ask(f"r{number}", user="ada")
    await full(cluster, 3)
    cluster.client.cancel("r2", "ada")
    await full(cluster, 2)
    assert await serve(cluster, "n1", 3) == ["r0", "r1", "r3"]


async def test_a_root_that_comes_back_keeps_the_order(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.add("n1", "root")
    for number in range(4):
        await cluster.ask(f"f{number}", user="flood")
    await cluster.ask("light", user="light")
    await full(cluster, 4)
    await cluster.kill("root")
    await cluster.add("root")
    await full(cluster, 4)
    await until(lambda: cluster.nodes["root"].dispatcher.child("n1"))
    order = await serve(cluster, "n1", 5)
    assert [each for each in order if each.startswith("f")] == ["f0", "f1", "f2", "f3"]
    assert order.index("light") <= 2


async def test_jobs_that_vanish_from_a_queue_do_not_take_slots_for_ever(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.life.HEARTBEAT_SECONDS", 0.02)
    await cluster.add("root")
    node = await cluster.add("n1", "root")
    await node.link.port.stop_consuming("n1")
    await cluster.ask("purged")
    queue = cluster.broker.queues[names.node("n1")]
    await until(lambda: queue.ready)
    queue.ready.clear()
    await node.link.port.consume("n1", prefetch=10)
    await cluster.ask("next")
    await until(lambda: cluster.where("next") == "n1")


async def test_what_a_node_cannot_place_goes_back_and_finds_a_slot(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a re-parenting: more came to the node than its parent knew of."""
    monkeypatch.setattr("worker.life.HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr("worker.jobs.RETURN_SECONDS", 0.05)
    await cluster.add("root")
    await cluster.add("n1", "root")
    await cluster.ask("first")
    await until(lambda: cluster.where("first") == "n1")
    await cluster.ask("second")
    await full(cluster, 1)
    root = cluster.nodes["root"]
    stray = root.jobs.waiting.take()
    assert stray is not None
    root.jobs._forward(stray, "n1")
    await until(lambda: len(cluster.nodes["n1"].jobs.waiting) == 1)
    await cluster.add("n2", "root")
    await until(lambda: cluster.where("second") == "n2")


async def test_a_job_of_no_work_is_buried(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.ask("wrong", work=-1.0)
    await until(lambda: cluster.broker.queues[names.DEAD_QUEUE].ready)


async def test_while_others_are_about_a_flood_leaves_a_slot(cluster: Cluster) -> None:
    await cluster.add("root", user_jobs=None)
    await cluster.add("n1", "root", slots=4)
    await cluster.ask("before", user="light")
    await until(lambda: cluster.where("before"))
    cluster.engine("n1").finish("before")
    for number in range(6):
        await cluster.ask(f"f{number}", user="flood")
    await full(cluster, 3)
    await cluster.ask("light", user="light")
    await until(lambda: cluster.where("light"))


async def test_a_job_that_could_not_go_can_still_be_cancelled(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.ask("a", user="ada")
    await full(cluster, 1)
    waiting = cluster.nodes["root"].jobs.waiting
    held = waiting.take()
    assert held is not None
    waiting.put_back(held)
    cluster.client.cancel("a", "ada")
    await full(cluster, 0)
    assert not waiting.copies_of("a") and not waiting.users
    await until(lambda: not cluster.nodes["root"].jobs.busy)


async def test_a_plan_limits_running_and_waiting_jobs_at_the_root(cluster: Cluster) -> None:
    await cluster.add("root")
    await cluster.add("n1", "root", slots=4)
    plan = {"user": "ada", "most_running": 2, "most_waiting": 1}
    streams = [await cluster.ask(f"a{number}", **plan) for number in range(3)]
    await full(cluster, 1)
    await until(lambda: "2 of your jobs" in streams[2].waiting)
    refused = await cluster.ask("a3", **plan)
    await until(lambda: refused.ended)
    assert isinstance(refused.end, Failed)
    assert refused.end.code == "user_limit"
    batch = await cluster.ask("a4", job_class="batch", **plan)
    await cluster.ask("b", user="bob")
    await until(lambda: cluster.where("b"))
    await full(cluster, 2)
    assert not batch.ended, "batch jobs count apart"
    cluster.engine("n1").finish("a0")
    await until(lambda: cluster.where("a2"))
