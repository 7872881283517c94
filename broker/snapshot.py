"""The tree at one moment: bindings and presence from the management API if there is one, states
from the nodes.

Used by the command line. The dashboard follows the states continuously through `broker.client`.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

from broker.amqp import AmqpSession
from broker.encoding import decode, encode
from broker.errors import DecodeError, NoSuchNode
from broker.gone import remove_gone
from broker.management import Edges, edges
from broker.node_state import NodeState
from broker.node_states import on_local_clock
from broker.session import Delivery, Session
from broker.state_events import bind_states, is_own
from broker.tree import edges_as_told
from broker.wire import AnyControl, Ping
from topology import names

ANSWER_SECONDS = 2.0
QUIET_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The edges, the state of each node that answered in time, and jobs ready by queue.

    `clock_differences`: seconds by which each node's clock is ahead of this machine's.
    """

    edges: Edges
    states: dict[str, NodeState]
    depths: dict[str, int]
    clock_differences: dict[str, float]

    @property
    def lost(self) -> frozenset[str]:
        """The registered nodes that did not answer; one that starts does."""
        return self.edges.present - self.states.keys()


async def take_snapshot(amqp_url: str, management_url: str) -> Snapshot:
    """Asks every present node for its state and waits for the answers, at most ANSWER_SECONDS.

    Raises BrokerError or ManagementError if the broker cannot be reached.
    """
    opening = asyncio.create_task(AmqpSession.open(amqp_url, "canopy tree"))
    try:
        tree_edges = await edges(management_url)  # while the session is opened
        session = await opening
    except BaseException:
        await _abandon(opening)
        raise
    try:
        states, differences = await _states(session, set(tree_edges.present))
        depths: dict[str, int] = {}
        for queue in map(names.node, tree_edges.registered):
            depth = await session.depth(queue)
            if depth is not None:
                depths[queue] = depth
    finally:
        await session.close()
    return Snapshot(tree_edges, states, depths, differences)


async def take_told(amqp_url: str) -> Snapshot:
    """The same without the management API, from what the nodes tell alone: those that are gone, and
    edges to them, are not seen. Raises BrokerError, AccessRefused if this user may not hear them.
    """
    session = await AmqpSession.open(amqp_url, "canopy tree")
    try:
        states, differences = await _states(session, None)
        depths: dict[str, int] = {}
        for name in tuple(states):
            depth = await session.depth(names.node(name))
            if depth is None:  # anybody may publish states; a node has a queue
                del states[name]
            else:
                depths[names.node(name)] = depth
    finally:
        await session.close()
    return Snapshot(edges_as_told(states), states, depths, differences)


async def _abandon(opening: "asyncio.Task[AmqpSession]") -> None:
    opening.cancel()
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()


async def send_control(amqp_url: str, node: str, message: AnyControl) -> None:
    """Puts a control message into the node's inbox. Raises NoSuchNode, BrokerError."""
    session = await AmqpSession.open(amqp_url, "canopy control")
    try:
        if not await session.publish("", names.inbox(node), encode(message)):
            raise NoSuchNode(f"no node named {node!r} is registered (./canopy tree lists them)")
    finally:
        await session.close()


async def remove_gone_nodes(amqp_url: str, nodes: Iterable[str], queue_type: str) -> None:
    """Deletes what the broker keeps of nodes that are gone. Raises Refusal, BrokerError."""
    session = await AmqpSession.open(amqp_url, "canopy control", queue_type=queue_type)
    try:
        await remove_gone(session, nodes)
    finally:
        await session.close()


async def _states(
    session: Session, expected: set[str] | None
) -> tuple[dict[str, NodeState], dict[str, float]]:
    """The states of the `expected` nodes, and the differences of their clocks.

    None: of all that answer; they are done when nobody has answered for QUIET_SECONDS.
    """
    states: dict[str, NodeState] = {}
    differences: dict[str, float] = {}
    complete = asyncio.Event()
    news = asyncio.Event()
    requested = time.time()

    def on_state(delivery: Delivery) -> None:
        delivery.ack()
        try:
            state = decode(delivery.body, NodeState)
        except DecodeError:
            return  # from a node of another release: it is shown without a state
        if expected is not None and state.name not in expected:
            return  # who is registered, the broker knows
        if not is_own(state, delivery):
            return  # a node speaks for itself alone
        arrived = time.time()
        states[state.name] = on_local_clock(state, arrived)
        differences[state.name] = clock_difference(requested, state.sent, arrived)
        news.set()
        if expected is not None and expected <= states.keys():
            complete.set()

    queue = names.watch(f"look-{id(session)}-{time.time_ns()}")
    await session.declare_queue(queue, exclusive=True)
    await bind_states(session, queue)
    await session.consume(queue, on_state, prefetch=1000)
    session.publish(names.CONTROL_EXCHANGE, "", encode(Ping()))
    with contextlib.suppress(TimeoutError):  # nodes that did not answer are shown without a state
        async with asyncio.timeout(ANSWER_SECONDS):
            if expected is None:
                await _quiet(news)
            elif expected:
                await complete.wait()
    return states, differences


async def _quiet(news: asyncio.Event) -> None:
    """Returns when there was some, and none for QUIET_SECONDS since."""
    await news.wait()
    with contextlib.suppress(TimeoutError):
        while True:
            news.clear()
            async with asyncio.timeout(QUIET_SECONDS):
                await news.wait()


def clock_difference(requested: float, sent: float, arrived: float) -> float:
    """Seconds by which the sender's clock is ahead, at least; negative if it is behind.

    On this machine's clock the answer was sent between `requested` and `arrived`.
    """
    if sent > arrived:
        return round(sent - arrived, 1)
    return round(min(0.0, sent - requested), 1)
