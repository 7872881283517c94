"""The broker objects that all processes share. Declaring them again changes nothing."""

from broker.session import Session
from topology import names


async def declare_shared(session: Session) -> None:
    """Declares the exchanges for jobs, control messages, events and what joined nodes send, and the
    dead letter queue.
    """
    await session.declare_exchange(names.JOBS_EXCHANGE, "direct")
    await session.declare_exchange(names.CONTROL_EXCHANGE, "fanout")
    await session.declare_exchange(names.EVENTS_EXCHANGE, "topic")
    await session.declare_exchange(names.JOINED_EXCHANGE, "topic")
    await session.declare_queue(names.DEAD_QUEUE)
