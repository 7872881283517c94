"""The broker objects that all processes share. Declaring them again changes nothing."""

import contextlib

from broker.errors import AccessRefused, NotFound
from broker.session import Session
from topology import names


async def declare_shared(session: Session) -> None:
    """Declares the exchanges for jobs, control messages, events and what joined nodes send, and the
    dead letter queue.
    """
    await session.declare_exchange(names.JOBS_EXCHANGE, "direct")
    await session.declare_exchange(names.CONTROL_EXCHANGE, "fanout")
    await session.declare_exchange(names.EVENTS_EXCHANGE, "topic")
    await session.declare_queue(names.DEAD_QUEUE)
    with contextlib.suppress(AccessRefused):  # see hear_joined
        await session.declare_exchange(names.JOINED_EXCHANGE, "topic")


async def hear_joined(session: Session, queue: str, key: str) -> None:
    """Lets joined nodes put messages with that key into the queue.

    A broker that was started by a release without them grants no right to that. Everything else
    works there, and no node has joined.
    """
    with contextlib.suppress(AccessRefused, NotFound):
        await session.bind(queue, names.JOINED_EXCHANGE, key)
