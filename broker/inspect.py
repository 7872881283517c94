"""The tree as one look from outside: bindings and presence from the management API, states from the nodes themselves.

Used by the command line. The dashboard follows the same states continuously through `broker.client`.
"""

import asyncio
import time
from dataclasses import dataclass

from broker.amqp import AmqpSession
from broker.management import Edges, edges
from broker.nodestates import moved
from broker.session import Delivery, Session
from broker.wire import AnyControl, DecodeError, NodeState, Ping, decode, encode
from topology import names

ANSWER_SECONDS = 2.0


class NoSuchNode(Exception):
    """No node of that name is registered."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen: the edges, the state of each node that answered in time, jobs ready by queue, and the seconds by
    which each node's clock is ahead of this machine's.
    """

    edges: Edges
    states: dict[str, NodeState]
    depths: dict[str, int]
    clock_differences: dict[str, float]


async def look(amqp_url: str, management_url: str) -> Look:
    """Asks every present node for its state and waits until all have answered, at most ANSWER_SECONDS.

    Raises BrokerError or ManagementError if the broker cannot be reached.
    """
    seen = await edges(management_url)
    session = await AmqpSession.open(amqp_url, "canopy tree")
    try:
        states, differences = await _states(session, set(seen.present))
        depths = {queue: await session.depth(queue) for queue in map(names.node, seen.registered)}
    finally:
        await session.close()
    known_depths = {queue: depth for queue, depth in depths.items() if depth is not None}
    return Look(seen, states, known_depths, differences)


async def tell(amqp_url: str, node: str, message: AnyControl) -> None:
    """Puts a control message into the node's inbox. Raises NoSuchNode, BrokerError."""
    session = await AmqpSession.open(amqp_url, "canopy control")
    try:
        if not await session.publish("", names.inbox(node), encode(message)):
            raise NoSuchNode(f"no node named {node!r} is registered (./canopy tree lists them)")
    finally:
        await session.close()


async def _states(
    session: Session, expected: set[str]
) -> tuple[dict[str, NodeState], dict[str, float]]:
    """The states of the `expected` nodes, and the differences of their clocks."""
    states: dict[str, NodeState] = {}
    differences: dict[str, float] = {}
    complete = asyncio.Event()
    asked = time.time()

    def heard(delivery: Delivery) -> None:
        delivery.ack()
        try:
            state = decode(delivery.body, NodeState)
        except DecodeError:
            return  # a newer or foreign node: it is shown without a state
        if state.name not in expected:
            return  # anybody may publish states; the broker lists who is registered
        arrived = time.time()
        states[state.name] = moved(state, arrived)
        differences[state.name] = clock_difference(asked, state.sent, arrived)
        if expected <= states.keys():
            complete.set()

    queue = names.watch(f"look-{id(session)}-{time.time_ns()}")
    await session.declare_queue(queue, exclusive=True)
    await session.bind(queue, names.EVENTS_EXCHANGE, names.state_key("*"))
    await session.consume(queue, heard, prefetch=1000)
    session.publish(names.CONTROL_EXCHANGE, "", encode(Ping()))
    if expected:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await complete.wait()
        except TimeoutError:
            pass  # who did not answer is shown as not answering
    return states, differences


def clock_difference(asked: float, sent: float, arrived: float) -> float:
    """Seconds by which the sender's clock is ahead, at least: its answer was sent between question and arrival."""
    if sent > arrived:
        return round(sent - arrived, 1)
    return round(min(0.0, sent - asked), 1)
