"""One process reads the management API for all, and the tree's edges are followed meanwhile."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from api.operate.recorder import recorder
from api.operate.recorder.recorder import Recorder
from broker import overview as reading
from broker.amqp import AmqpSession
from broker.broker_reports import REPORT_SECONDS
from broker.client import Client
from broker.management import Edges, ManagementApi, prune_tree
from broker.operator_messages import BrokerOverview, QueueFigures
from cli.rabbitmq import Broker
from tests.realbroker import NodeProcess, echo_node, root
from topology import names

SECONDS = 30.0


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the management API was read (monotonic clock)."""
    moments: list[float] = []

    async def count(url: str, process: str, now: float) -> BrokerOverview:
        moments.append(time.monotonic())
        return await reading.read_overview(url, process, now)

    monkeypatch.setattr(recorder, "read_overview", count)
    return moments


@contextlib.asynccontextmanager
async def api_process(broker: Broker) -> AsyncIterator[Client]:
    """A connected client with a recorder, as in an API process."""
    client = Client(broker.amqp["api"])
    await client.start()
    await until(client, lambda: client.connected)
    recording = asyncio.create_task(Recorder(client.reports, broker.management["api"]).run())
    try:
        yield client
    finally:
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
        await client.stop()


async def until(client: Client, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():
            await client.changed()


@pytest.fixture
def tree(broker: Broker) -> Iterator[NodeProcess]:
    """root -> n1; the node n1. What other files' tests have left is removed."""
    asyncio.run(prune_tree(broker.management["admin"], Edges({}, {}, frozenset(), frozenset())))
    with root(broker), echo_node(broker, "n1", "root") as n1:
        yield n1


async def test_one_process_reads_for_both_and_the_other_takes_over(
    broker: Broker, tree: NodeProcess, readings: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.broker_reports.SILENT_SECONDS", 3.0)
    monkeypatch.setattr(recorder, "REPORT_SECONDS", 1.0)
    async with api_process(broker) as second:
        async with api_process(broker) as first:
            await until(first, lambda: first.reports.latest is not None)
            await until(second, lambda: second.reports.latest is not None)
            assert [first.reports.is_recorder, second.reports.is_recorder].count(True) == 1
            assert first.edges.now() == second.edges.now()
            assert first.edges.now().parents == {"n1": "root"}
            if second.reports.is_recorder:
                return
        latest = second.reports.latest
        await until(second, lambda: second.reports.is_recorder)
        await until(second, lambda: second.reports.latest is not latest)
    gaps = [after - before for before, after in itertools.pairwise(readings)]
    assert min(gaps) > 0.9  # with the interval of this test


async def test_the_overview_says_what_the_broker_has(
    broker: Broker, tree: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against what was put there."""
    monkeypatch.setattr(recorder, "REPORT_SECONDS", 0.5)
    session = await AmqpSession.open(broker.amqp["node"], "test")
    queue = names.node("lonely")
    await session.declare_queue(queue)
    for _ in range(7):
        assert await session.publish("", queue, b"twelve bytes", persistent=True)
    async with api_process(broker) as client:

        def lonely() -> QueueFigures:
            overview = client.reports.latest
            queues = overview.queues if overview else ()
            return {each.name: each for each in queues}.get(queue, QueueFigures(name=queue))

        await until(client, lambda: lonely().ready == 7)
        assert (lonely().bytes, lonely().consumers, lonely().unacked) == (7 * 12, 0, 0)
        overview = client.reports.latest
        assert overview is not None
        assert overview.problem == ""
        assert names.node("n1") in {each.name for each in overview.queues}
        [member] = overview.members
        assert (member.running, member.memory_alarm, member.disk_alarm) == (True, False, False)
        assert 0 < member.memory < member.memory_limit
    await ManagementApi(broker.management["admin"]).delete(f"queues/%2F/{queue}")
    await session.close()


async def test_edges_follow_at_once(broker: Broker, tree: NodeProcess) -> None:
    """The next reading of the management API is seconds away."""
    async with api_process(broker) as client:
        edges = client.edges
        await until(client, lambda: "n1" in edges.now().present)
        node = echo_node(broker, "n2", "n1")
        try:
            await asyncio.to_thread(node.wait_ready)
            assert edges.now().parents == {"n1": "root", "n2": "n1"}
            assert {"n1", "n2"} <= edges.now().present
        finally:
            await asyncio.to_thread(node.__exit__)
        await until(client, lambda: edges.now().parents == {"n1": "root"})
        tree.process.kill()
        killed = time.monotonic()
        await until(client, lambda: "n1" not in edges.now().present)
        assert time.monotonic() - killed < REPORT_SECONDS / 2
