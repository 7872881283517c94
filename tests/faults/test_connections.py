"""The network between a process and the broker: cut, half-open, slow. Texts stay exact."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import pytest_asyncio

from broker.client import Client
from cli.rabbitmq import Broker
from tests.faults.conftest import Grow, Join, Open
from tests.faults.ledger import Ledger
from tests.faults.nodes import HEARTBEATS_SECONDS, Tree, disconnected
from tests.proxy import Proxy

LATENCY_SECONDS = 0.5

NewProxy = Callable[[], Awaitable[Proxy]]


@pytest_asyncio.fixture
async def new_proxy(broker: Broker) -> AsyncIterator[NewProxy]:
    """Proxies before the broker."""
    async with AsyncExitStack() as stack:

        async def new() -> Proxy:
            return await stack.enter_async_context(Proxy.before(broker.amqp["node"]))

        yield new


def by(proxy: Proxy, broker: Broker) -> Broker:
    """The broker as it is reached through the proxy."""
    return replace(
        broker, amqp={user: proxy.through(address) for user, address in broker.amqp.items()}
    )


async def in_mid_stream(ledger: Ledger, tokens: int = 150) -> None:
    """Every slot is taken: answers are long enough that the first still run when the last begin."""
    await ledger.submit(40, tokens=tokens)
    await ledger.until(lambda: len(ledger.running()) == 28)


@pytest.mark.parametrize(("where", "victim"), [("leaf", "n4"), ("inner", "n2"), ("root", "root")])
async def test_a_nodes_connection_is_cut(
    where: str, victim: str, broker: Broker, new_proxy: NewProxy, grow: Grow, account: Open
) -> None:
    proxy = await new_proxy()
    tree: Tree = await grow(via={victim: by(proxy, broker)})
    ledger = account("TCP cut", f"{where}-broker")
    await in_mid_stream(ledger)
    ledger.strike(ledger.on(victim) if where != "root" else ledger.running())
    proxy.cut()
    assert await ledger.settled() == []
    await tree.whole()


async def test_the_readers_connection_is_cut(
    broker: Broker, new_proxy: NewProxy, join: Join, grow: Grow, account: Open
) -> None:
    proxy = await new_proxy()
    await grow()
    client = await join(proxy.through(broker.amqp["api"]))
    ledger = account("TCP cut", "API-broker", client=client)
    await in_mid_stream(ledger)
    ledger.strike(ledger.running())
    proxy.cut()
    async with asyncio.timeout(30):
        while client.connected:
            await client.changed()
        while not client.connected:
            await client.changed()
    await ledger.submit(5, tokens=10)
    assert await ledger.settled() == []


async def test_connections_are_half_open(
    broker: Broker, new_proxy: NewProxy, join: Join, grow: Grow, account: Open
) -> None:
    """A node's and a reader's connection at once, as it takes long; another is cut at the end.

    Both ends of each give up after missed heartbeats, before anything flows again.
    """
    leaf, inner, reader = await new_proxy(), await new_proxy(), await new_proxy()
    tree: Tree = await grow(via={"n4": by(leaf, broker), "n3": by(inner, broker)}, delay=0.05)
    client = await join(reader.through(broker.amqp["api"]))
    nodes = account("half-open", "leaf-broker, inner-broker")
    api = account("half-open", "API-broker", client=client)
    ends = [tree.processes[name].said("not registered, trying again") for name in ("n3", "n4")]
    await asyncio.gather(nodes.submit(20, tokens=200), api.submit(20, tokens=200))
    await nodes.until(
        lambda: len([*nodes.on("n4"), *nodes.on("n3"), *api.on("n4"), *api.on("n3")]) == 8
    )
    nodes.strike([*nodes.on("n4"), *nodes.on("n3")])
    api.strike(api.running())
    for proxy in (leaf, inner, reader):
        proxy.freeze()
    await disconnected(broker, "n3", "n4")
    for end in ends:
        assert await asyncio.to_thread(end.wait, HEARTBEATS_SECONDS)
    async with asyncio.timeout(HEARTBEATS_SECONDS):
        while client.connected:
            await client.changed()
    leaf.thaw()
    reader.thaw()
    inner.cut()
    assert await nodes.settled() == []
    assert await api.settled() == []
    await tree.whole()


async def test_a_slow_network(
    broker: Broker, new_proxy: NewProxy, join: Join, grow: Grow, account: Open
) -> None:
    """500 ms in each direction between the broker and the reader, a leaf and the root."""
    proxies = [await new_proxy() for _ in range(3)]
    leaf, root, reader = proxies
    tree: Tree = await grow(via={"n4": by(leaf, broker), "root": by(root, broker)})
    client: Client = await join(reader.through(broker.amqp["api"]))
    ledger = account("500 ms latency", "leaf-broker, root-broker, API-broker", client=client)
    for proxy in proxies:
        proxy.delay = LATENCY_SECONDS
    await in_mid_stream(ledger, tokens=300)
    assert await ledger.settled() == []
    await tree.whole()
