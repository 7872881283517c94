"""The broker objects that exist once, whoever comes first. Declaring them again changes nothing."""

from broker.session import Session
from topology import names


async def declare_shared(session: Session) -> None:
    """Declares the entrance, the control and event exchanges and the queue of dead jobs."""
    await session.declare_exchange(names.JOBS_EXCHANGE, "direct")
    await session.declare_exchange(names.CONTROL_EXCHANGE, "fanout")
    await session.declare_exchange(names.EVENTS_EXCHANGE, "topic")
    await session.declare_queue(names.DEAD_QUEUE)
