"""The tree as one look from outside: bindings and presence from the management API, states from the nodes themselves.

Used by the command line. The dashboard follows the same states continuously through `broker.client`.
"""

import asyncio
import time
from dataclasses import dataclass

from broker.amqp import AmqpSession
from broker.management import Edges, edges
from broker.session import Delivery, Session
from broker.tree import on_our_clock
from broker.wire import AnyControl, DecodeError, NodeState, Ping, decode, encode
from topology import names

ANSWER_SECONDS = 2.0


class NoSuchNode(Exception):
    """No node of that name is registered."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen: the edges, the state of each node that answered in time, jobs ready by queue."""

    edges: Edges
    states: dict[str, NodeState]
    depths: dict[str, int]


async def look(amqp_url: str, management_url: str) -> Look:
    """Asks every present node for its state and waits until all have answered, at most ANSWER_SECONDS.

    Raises BrokerError or ManagementError if the broker cannot be reached.
    """
    seen = await edges(management_url)
    session = await AmqpSession.open(amqp_url, "canopy tree")
    try:
        states = await _states(session, set(seen.present))
        depths = {queue: await session.depth(queue) for queue in map(names.node, seen.registered)}
    finally:
        await session.close()
    return Look(seen, states, {queue: depth for queue, depth in depths.items() if depth is not None})


async def tell(amqp_url: str, node: str, message: AnyControl) -> None:
    """Puts a control message into the node's inbox. Raises NoSuchNode, BrokerError."""
    session = await AmqpSession.open(amqp_url, "canopy control")
    try:
        if not await session.publish("", names.inbox(node), encode(message)):
            raise NoSuchNode(f"no node named {node!r} is registered (./canopy tree lists them)")
    finally:
        await session.close()


async def _states(session: Session, expected: set[str]) -> dict[str, NodeState]:
    states: dict[str, NodeState] = {}
    complete = asyncio.Event()

    def heard(delivery: Delivery) -> None:
        delivery.ack()
        try:
            state = decode(delivery.body, NodeState)
        except DecodeError:
            return  # a newer or foreign node: it is shown without a state
        states[state.name] = on_our_clock(state, time.time())
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
    return states
