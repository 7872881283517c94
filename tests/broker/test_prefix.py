"""Two instances with different prefixes on one broker and virtual host do not see each other."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import httpx
import pytest
import pytest_asyncio

from broker import snapshot
from broker.amqp import AmqpSession
from broker.client import Client
from broker.management import Edges, edges, prune_tree
from broker.overview import read_overview
from broker.session import Session
from broker.stream import Stream
from broker.wire import ChatMessage, Delta, Job, Sampling
from cli.rabbitmq import Broker
from tests.realbroker import NodeProcess, echo_node, root
from tests.session_contract import Open, SessionContract
from topology import names
from topology.prefix import with_prefix

SECONDS = 30.0
NOBODY = Edges({}, {}, frozenset(), frozenset())


def instance(broker: Broker, prefix: str) -> Broker:
    """The broker as an operator gives it to an instance: one login, a prefix of its own."""
    return Broker.elsewhere(
        with_prefix(broker.amqp["admin"], prefix), with_prefix(broker.management["admin"], prefix)
    )


class TestPrefixedSession(SessionContract):
    @pytest_asyncio.fixture
    async def connect(self, broker: Broker) -> AsyncIterator[Open]:
        opened: list[Session] = []

        async def open_session() -> Session:
            opened.append(await AmqpSession.open(instance(broker, "beta").amqp["node"], "test"))
            return opened[-1]

        yield open_session
        for session in opened:
            await session.close()


@asynccontextmanager
async def reader(broker: Broker) -> AsyncIterator[Client]:
    client = Client(broker.amqp["api"])
    await client.start()
    try:
        await until(client)
        yield client
    finally:
        await client.stop()


async def until(client: Client, *nodes: str) -> None:
    """Returns when the client is connected and shows those nodes."""
    async with asyncio.timeout(SECONDS):
        while not client.connected or not {*nodes} <= client.nodes().keys():
            await client.changed()


async def ask(client: Client, words: int) -> Stream:
    return await client.submit(
        Job(
            request_id=uuid.uuid4().hex,
            model="echo",
            reply_to="",
            created=time.time(),
            messages=(ChatMessage(role="user", content="again"),),
            sampling=Sampling(max_tokens=words),
        )
    )


async def text_of(stream: Stream) -> str:
    async with asyncio.timeout(SECONDS):
        return "".join([frame.text async for frame in stream if isinstance(frame, Delta)])


@pytest.fixture
def both(broker: Broker) -> Iterator[tuple[Broker, Broker, dict[str, NodeProcess]]]:
    """The addresses of both instances, and the second one's nodes: root -> n1 in each."""
    alpha, beta = instance(broker, "alpha"), instance(broker, "beta")
    with ExitStack() as running:
        for each in (alpha, beta):
            nodes = {"root": running.enter_context(root(each))}
            slow = echo_node(each, "n1", "root", "--slots", "2", "--token-delay", "0.02")
            nodes["n1"] = running.enter_context(slow)
        yield alpha, beta, nodes


async def test_the_same_names_in_both_and_each_sees_its_own(
    broker: Broker, both: tuple[Broker, Broker, dict[str, NodeProcess]]
) -> None:
    alpha, beta, nodes = both
    async with reader(alpha) as first, reader(beta) as second:
        await asyncio.gather(until(first, "root", "n1"), until(second, "root", "n1"))
        assert first.nodes()["n1"].pid != second.nodes()["n1"].pid
        running = [await ask(first, 100), await ask(second, 3)]
        assert await text_of(running[1]) == " ".join(["again"] * 3)
        nodes["n1"].process.kill()  # of the second one: the first must hear nothing of it
        nodes["n1"].wait_exit()
        assert await text_of(running[0]) == " ".join(["again"] * 100)
        async with asyncio.timeout(SECONDS):
            while "n1" in second.nodes():
                await second.changed()
        assert "n1" in first.nodes()
    async with asyncio.timeout(SECONDS):
        look = await _idle(alpha)
    assert look.edges.parents == {"n1": "root"}
    assert "n1" not in (await edges(beta.management["admin"])).present


async def test_one_clears_up_and_the_other_keeps_all(
    broker: Broker, both: tuple[Broker, Broker, dict[str, NodeProcess]]
) -> None:
    alpha, beta, nodes = both
    kept = await _queues(broker, "alpha.")
    for node in nodes.values():
        node.process.kill()
        node.wait_exit()
    await prune_tree(beta.management["admin"], NOBODY)
    assert not {name for name in await _queues(broker, "beta.") if ".node." in name}
    assert await _queues(broker, "alpha.") == kept
    overview = await read_overview(alpha.management["admin"], "test", time.time())
    assert {queue.name.replace("canopy.", "alpha.", 1) for queue in overview.queues} == kept
    async with reader(alpha) as client:
        await until(client, "root", "n1")
        assert await text_of(await ask(client, 2)) == "again again"


async def _idle(broker: Broker) -> snapshot.Snapshot:
    """The instance once n1 runs nothing: its slot is free a moment after the answer's end."""
    while True:
        look = await snapshot.take_snapshot(broker.amqp["admin"], broker.management["admin"])
        if look.states["n1"].running == 0:
            return look


async def _queues(broker: Broker, prefix: str) -> set[str]:
    """What RabbitMQ's own tools list."""
    async with httpx.AsyncClient(trust_env=False) as http:
        listed = (await http.get(f"{broker.management['admin']}/api/queues/%2F")).json()
    found = {queue["name"] for queue in listed if queue["name"].startswith(prefix)}
    assert {f"{prefix}{names.DEAD_QUEUE.removeprefix('canopy.')}"} <= found
    return found
