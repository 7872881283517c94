"""Waiting for a node's name to become free: how a standby follows the node whose place it will take."""

import asyncio
import contextlib
import uuid

from broker.node import BROKER_EVENTS
from broker.session import Delivery, NotFound, Session
from topology import names

LOOK_SECONDS = 5.0  # should the broker's event be lost


async def until_gone(session: Session, node: str) -> None:
    """Returns when no node of that name is registered. Cancelled by whoever sees the session end."""
    gone = asyncio.Event()

    def heard(delivery: Delivery) -> None:
        delivery.ack()
        if delivery.headers.get("name") == names.inbox(node):
            gone.set()

    queue = names.standby(node, uuid.uuid4().hex)
    await session.declare_queue(queue, exclusive=True)
    with contextlib.suppress(
        NotFound
    ):  # a broker without its event exchange is looked at now and then
        await session.bind(queue, BROKER_EVENTS, "queue.deleted")
    await session.consume(queue, heard, prefetch=100)
    while await session.exists(names.inbox(node)):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await gone.wait()
        gone.clear()  # another standby may be faster: then it is the next one's death that counts
