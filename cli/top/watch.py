"""Follows the nodes' states on one broker session."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from broker.amqp import AmqpSession
from broker.encoding import encode
from broker.errors import BrokerError
from broker.node_watch import NodeWatch
from broker.session import Session
from broker.tree import edges_of_part
from broker.wire import Ping
from cli import registry
from cli.top.figures import Figures, figures
from cli.top.rates import TokenRates
from topology import names


class Watch:
    """The latest figures of one session. `changed` is set when a node's state has arrived."""

    def __init__(self, session: Session) -> None:
        self.changed = asyncio.Event()
        self.nodes = NodeWatch(f"top-{os.getpid()}-{id(self)}", self.changed.set)
        self._session = session
        self._rates = TokenRates()

    @property
    def lost(self) -> bool:
        """True once the session has ended."""
        return self._session.closed.done()

    def ping(self) -> None:
        """Has every node publish its state now."""
        self._session.publish(names.CONTROL_EXCHANGE, "", encode(Ping()))

    async def figures(self) -> Figures:
        """The tree now. Asks the broker for the queues of roots alone. Raises BrokerError."""
        states = self.nodes.states.recent()
        self._rates.add(states)
        depths: dict[str, int] = {}
        for name, state in states.items():
            if state.parent is None:
                depth = await self._session.depth(names.node(name))
                depths[names.node(name)] = depth or 0
        return figures(states, depths, self._rates)


class LocalWatch:
    """As Watch, of the nodes that run on this machine."""

    lost = False

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.changed.set()
        self._rates = TokenRates()

    def ping(self) -> None:
        """They are asked each time."""
        self.changed.set()

    async def figures(self) -> Figures:
        """These nodes now."""
        states = await asyncio.to_thread(registry.local_states)
        self._rates.add(states)
        return figures(states, {}, self._rates, edges_of_part)


@contextlib.asynccontextmanager
async def watching(amqp_url: str) -> AsyncIterator[Watch | LocalWatch]:
    """A watch on a session of its own; without an address, on the nodes that run here.

    Raises BrokerError.
    """
    if not amqp_url:
        yield LocalWatch()
        return
    session = await AmqpSession.open(amqp_url, "canopy top")
    try:
        watch = Watch(session)
        await watch.nodes.open(session)
        checking = asyncio.create_task(watch.nodes.check(session), name="registered nodes")
        try:
            yield watch
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)
    finally:
        with contextlib.suppress(BrokerError):
            await session.close()
