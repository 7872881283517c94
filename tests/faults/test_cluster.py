"""A cluster of three brokers with quorum queues loses one, or has one cut off: no job is lost.

Every node and the reader know all three addresses and use one of them.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
import pytest_asyncio

from broker.client import Client
from cli.rabbitmq import Broker
from tests.brokercluster import Cluster, ClusterBroker, broker_cluster
from tests.faults.conftest import CONNECT_SECONDS, Grow, Open
from tests.faults.nodes import Tree

QUORUM = {"CANOPY_QUEUE_TYPE": "quorum"}
NODES = ("root", "n1", "n2", "n3", "n4")
SLOTS = 30  # each: of 200 jobs 120 run and 80 wait
SECONDS = 120.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with broker_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def broker(cluster: Cluster) -> Broker:
    """The addresses of all three."""
    return cluster.address


@pytest_asyncio.fixture
async def client(broker: Broker) -> AsyncIterator[Client]:
    """The reader."""
    client = Client(broker.amqp["api"], queue_type="quorum")
    await client.start()
    async with asyncio.timeout(CONNECT_SECONDS):
        while not client.connected:
            await client.changed()
    yield client
    await client.stop()


async def four_nodes(grow: Grow) -> Tree:
    """A root and four echo nodes."""
    tree: Tree = await grow(
        count=4, slots=SLOTS, delay=0.1, policy="hold-high", env=dict.fromkeys(NODES, QUORUM)
    )
    return tree


def uses(process: psutil.Process, broker: ClusterBroker) -> bool:
    """Whether that process is connected to that broker."""
    return any(
        each.raddr and each.raddr.port == broker.port for each in process.net_connections("tcp")
    )


def users(broker: ClusterBroker, tree: Tree) -> list[str]:
    """The nodes connected to that broker."""
    return [
        name
        for name, node in tree.processes.items()
        if uses(psutil.Process(node.process.pid), broker)
    ]


async def test_one_of_three_brokers_is_killed(cluster: Cluster, grow: Grow, account: Open) -> None:
    tree = await four_nodes(grow)
    victim = next(
        broker for broker in cluster.brokers if uses(psutil.Process(), broker)
    )  # the reader's
    ledger = account(
        "kill -9 of 1 of 3 brokers",
        f"the reader and {len(users(victim, tree))} nodes on it; 200 jobs",
    )
    await ledger.submit(200, tokens=30)
    await ledger.until(lambda: len(ledger.running()) == 4 * SLOTS)
    ledger.strike(ledger.running())
    await asyncio.to_thread(victim.kill)
    await ledger.until(lambda: ledger.ended() >= 100)
    victim.start()
    await asyncio.to_thread(victim.wait_up)
    assert await ledger.settled(SECONDS) == []
    await asyncio.to_thread(victim.wait_joined)
    await tree.whole()


@pytest.mark.parametrize("with_reader", [True, False], ids=["the reader's", "another"])
async def test_one_of_three_brokers_is_cut_off_and_comes_back(
    with_reader: bool, cluster: Cluster, grow: Grow, account: Open
) -> None:
    """A minority deletes the majority's reply queues until it pauses: nodes must not trust that."""
    tree = await four_nodes(grow)
    possible = [
        broker for broker in cluster.brokers if uses(psutil.Process(), broker) == with_reader
    ]
    minority = max(possible, key=lambda broker: len(users(broker, tree)))
    reader = "the reader and " if with_reader else ""
    where = f"{reader}{len(users(minority, tree))} nodes on it; 200 + 100 + 100 jobs"
    ledger = account("1 of 3 brokers cut off, healed", where)
    await ledger.submit(200, tokens=30)
    await ledger.until(lambda: len(ledger.running()) == 4 * SLOTS)
    ledger.strike(ledger.running())
    await asyncio.to_thread(minority.cut_off)
    await asyncio.to_thread(minority.wait_paused)
    await tree.whole()
    await ledger.submit(100, tokens=30)
    await asyncio.to_thread(minority.heal)
    await asyncio.to_thread(minority.wait_up)
    await asyncio.to_thread(minority.wait_joined)
    await ledger.submit(100, tokens=30)
    assert await ledger.settled(SECONDS) == []
    await tree.whole()
