"""A cluster of three brokers with quorum queues: what it gives a session, and that no job is lost.

Both parts share one cluster, as three brokers take long to start. In the second part every node and
the reader know all three addresses and use one of them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import psutil
import pytest
import pytest_asyncio

from broker.amqp import AmqpSession
from broker.client import Client
from broker.errors import BrokerError
from broker.session import Session
from cli.rabbitmq import Broker
from tests.brokercluster import Cluster, ClusterBroker, broker_cluster
from tests.faults.conftest import CONNECT_SECONDS, Grow, Open
from tests.faults.nodes import Tree
from tests.session_contract import Inbox, fresh

QUORUM = {"CANOPY_QUEUE_TYPE": "quorum"}
NODES = ("root", "n1", "n2", "n3", "n4")
SLOTS = 30  # each: of 200 jobs 120 run and 80 wait
SETTLED_SECONDS = 120.0
SECONDS = 30.0

# RabbitMQ 3 deletes the record by the queue's name, RabbitMQ 4 by the record itself
FORGET = """
begin
    Name = rabbit_misc:r(<<"/">>, queue, <<"INBOX">>),
    {ok, Queue} = rabbit_amqqueue:lookup(Name),
    try rabbit_amqqueue:internal_delete(Name, <<"test">>)
    catch error:function_clause -> rabbit_amqqueue:internal_delete(Queue, <<"test">>)
    end
end.
"""

Connect = Callable[[str], Awaitable[Session]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with broker_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


# ---- what Canopy relies on


@pytest_asyncio.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens sessions with quorum queues at an address."""
    opened: list[Session] = []

    async def connect(url: str) -> Session:
        opened.append(await AmqpSession.open(url, "test", queue_type="quorum"))
        return opened[-1]

    yield connect
    for session in opened:
        await session.close()


def node_url(broker: ClusterBroker) -> str:
    return broker.address.amqp["node"]


async def watch_deletions(session: Session) -> Inbox:
    """Hears of every queue that is deleted anywhere in the cluster, as a node's inbox does."""
    queue, deleted = fresh("inbox"), Inbox()
    await session.declare_queue(queue, exclusive=True)
    await session.bind(queue, "amq.rabbitmq.event", "queue.deleted")
    await session.consume(queue, deleted, prefetch=100)
    return deleted


async def heard(deleted: Inbox, queue: str) -> None:
    """Returns when the deletion of that queue was heard."""
    async with asyncio.timeout(SECONDS):
        while (await deleted.taken.get()).headers.get("name") != queue:
            pass


async def test_a_killed_brokers_exclusive_queues_are_reported_elsewhere(
    cluster: Cluster, connect: Connect
) -> None:
    victim, other, _ = cluster.brokers
    away, here = await connect(node_url(victim)), await connect(node_url(other))
    deleted, inbox = await watch_deletions(here), fresh("inbox")
    await away.declare_queue(inbox, exclusive=True)
    assert await here.exists(inbox)
    victim.kill()
    await heard(deleted, inbox)
    await here.declare_queue(inbox, exclusive=True)  # the name is free at once
    victim.start()
    await asyncio.to_thread(victim.wait_up)
    await asyncio.to_thread(victim.wait_joined)
    assert await here.exists(inbox)  # nor does the broker that is back take it away


async def test_a_minority_ends_its_sessions_and_the_others_hear_of_it(
    cluster: Cluster, connect: Connect
) -> None:
    other, _, minority = cluster.brokers
    away, here = await connect(node_url(minority)), await connect(node_url(other))
    deleted, inbox = await watch_deletions(here), fresh("inbox")
    await away.declare_queue(inbox, exclusive=True)
    await asyncio.to_thread(minority.cut_off)
    await heard(deleted, inbox)
    async with asyncio.timeout(SECONDS):
        assert isinstance(await away.closed, BrokerError)
    await here.declare_queue(inbox, exclusive=True)
    await asyncio.to_thread(minority.heal)
    await asyncio.to_thread(minority.wait_up)
    await asyncio.to_thread(minority.wait_joined)
    again = await connect(node_url(minority))
    assert await again.exists(inbox)


async def test_confirmed_jobs_survive_the_broker_that_confirmed_them(
    cluster: Cluster, connect: Connect
) -> None:
    victim, other, _ = cluster.brokers
    queue, inbox = fresh(), Inbox()
    sender = await connect(node_url(victim))
    await sender.declare_queue(queue)
    assert all(
        await asyncio.gather(
            *(sender.publish("", queue, b"%d" % n, persistent=True) for n in range(50))
        )
    )
    victim.kill()
    taker = await connect(node_url(other))
    await taker.consume(queue, inbox, prefetch=100)
    assert [int((await inbox.next()).body) for _ in range(50)] == list(range(50))
    victim.start()
    await asyncio.to_thread(victim.wait_up)
    await asyncio.to_thread(victim.wait_joined)


async def test_requeued_jobs_keep_their_place(cluster: Cluster, connect: Connect) -> None:
    session, queue, first, again = (
        await connect(node_url(cluster.brokers[0])),
        fresh(),
        Inbox(),
        Inbox(),
    )
    await session.declare_queue(queue)
    await asyncio.gather(
        *(session.publish("", queue, b"%d" % number, persistent=True) for number in range(6))
    )
    tag = await session.consume(queue, first, prefetch=3)
    taken = [await first.next() for _ in range(3)]
    await session.cancel(tag)
    for delivery in taken:
        delivery.requeue()
    await session.consume(queue, again, prefetch=10)
    found = [await again.next() for _ in range(6)]
    assert [int(each.body) for each in found] == [0, 1, 2, 3, 4, 5]
    assert [each.redelivered for each in found] == [True, True, True, False, False, False]


async def test_a_job_is_not_dropped_however_often_it_comes_back(
    cluster: Cluster, connect: Connect
) -> None:
    session, queue, inbox = await connect(node_url(cluster.brokers[0])), fresh(), Inbox()
    await session.declare_queue(queue)
    assert await session.publish("", queue, b"x", persistent=True)
    await session.consume(queue, inbox, prefetch=1)
    for _ in range(50):
        (await inbox.next()).requeue()
    (await inbox.next()).ack()


async def test_a_quorum_queue_is_never_deleted(cluster: Cluster, connect: Connect) -> None:
    session, queue = await connect(node_url(cluster.brokers[0])), fresh()
    await session.declare_queue(queue)
    assert not await session.delete_queue(queue)
    assert await session.depth(queue) == 0


async def test_a_queue_of_another_type_is_refused_with_what_to_do(
    cluster: Cluster, connect: Connect
) -> None:
    url, queue = node_url(cluster.brokers[0]), fresh()
    await (await connect(url)).declare_queue(queue)
    classic = await AmqpSession.open(url, "test", queue_type="classic")
    with pytest.raises(BrokerError, match=f"CANOPY_QUEUE_TYPE=classic.*delete_queue {queue}"):
        await classic.declare_queue(queue)
    assert await classic.exists(queue)  # the session goes on
    await classic.close()


async def test_a_session_whose_queue_was_forgotten_ends(cluster: Cluster, connect: Connect) -> None:
    """As a partition does in some versions: the record is gone, the queue seems to live."""
    broker = cluster.brokers[0]
    session, inbox = await connect(node_url(broker)), fresh("inbox")
    await session.declare_queue(inbox, exclusive=True)
    await session.consume(inbox, Inbox(), prefetch=1)
    await asyncio.to_thread(broker.evaluate, FORGET.replace("INBOX", inbox))
    async with asyncio.timeout(SECONDS):
        assert inbox in str(await session.closed)


# ---- a tree on it


@pytest.fixture
def broker(cluster: Cluster) -> Broker:
    """The addresses of all three."""
    return cluster.address


@pytest_asyncio.fixture
async def client(broker: Broker) -> AsyncIterator[Client]:
    """The reader."""
    client = Client(broker.amqp["api"], queue_type="quorum")
    await client.start()
    await connected(client)
    yield client
    await client.stop()


async def connected(client: Client) -> None:
    """Returns when the reader has a session, perhaps a new one after a fault."""
    async with asyncio.timeout(CONNECT_SECONDS):
        while not client.connected:
            await client.changed()


async def parted(client: Client, broker: ClusterBroker) -> None:
    """Returns when the reader, which is in this process, has left that broker.

    RabbitMQ 4 closes its listeners before it ends the connections that it has.
    """
    async with asyncio.timeout(CONNECT_SECONDS):
        while uses(psutil.Process(), broker):
            await client.changed()


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
    try:
        await ledger.until(lambda: ledger.ended() >= 100)
    finally:
        victim.start()
        await asyncio.to_thread(victim.wait_up)
    assert await ledger.settled(SETTLED_SECONDS) == []
    await asyncio.to_thread(victim.wait_joined)
    await tree.whole()


@pytest.mark.parametrize("with_reader", [True, False], ids=["the reader's", "another"])
async def test_one_of_three_brokers_is_cut_off_and_comes_back(
    with_reader: bool, cluster: Cluster, client: Client, grow: Grow, account: Open
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
    try:
        await asyncio.to_thread(minority.wait_paused)
        await tree.whole()
        await parted(client, minority)
        # a broker may part from it again while the tree comes back
        await ledger.submit(100, tokens=30, patience=CONNECT_SECONDS)
    finally:  # the next test has the same brokers
        await asyncio.to_thread(minority.heal)
        await asyncio.to_thread(minority.wait_up)
        await asyncio.to_thread(minority.wait_joined)
    await ledger.submit(100, tokens=30, patience=CONNECT_SECONDS)
    assert await ledger.settled(SETTLED_SECONDS) == []
    await tree.whole()
