"""Waiting for a node's name to become free: how a standby follows the node that it will replace."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable

from broker.errors import NotFound
from broker.session import BROKER_EVENTS, Delivery, Session
from topology import names

LOOK_SECONDS = 5.0  # between two checks, should the broker's event be lost


async def until_gone(session: Session, node: str, on_taken: Callable[[], None]) -> None:
    """Returns when no node of that name is registered. Cancel it if the session ends.

    `on_taken()` is called once if one is registered, by the very answer that makes this wait: with
    two questions, a node that registers in between would be waited for without a word.
    """
    gone = asyncio.Event()

    def on_queue_deleted(delivery: Delivery) -> None:
        delivery.ack()
        if delivery.headers.get("name") == names.inbox(node):
            gone.set()

    queue = names.standby(node, uuid.uuid4().hex)
    await session.declare_queue(queue, exclusive=True)
    with contextlib.suppress(NotFound):  # no event exchange: checked every LOOK_SECONDS
        await session.bind(queue, BROKER_EVENTS, "queue.deleted")
    await session.consume(queue, on_queue_deleted, prefetch=100)
    waiting = False
    while await session.exists(names.inbox(node)):
        if not waiting:
            waiting = True
            on_taken()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await gone.wait()
        gone.clear()  # another standby may be faster: wait for its end, then
