"""Deletes what the broker keeps of a tree that has ended."""

from collections.abc import Iterable

from broker.errors import BrokerError, Refusal, Unavailable
from broker.session import Session
from topology import names

NOT_DELETED = "quorum queues cannot be deleted safely: use rabbitmqctl delete_queue"


def check_deletes(queue_type: str) -> None:
    """Raises Refusal, before anything is asked of the broker, if its queues must stay."""
    if queue_type == "quorum":
        raise Refusal(NOT_DELETED)


async def remove_gone(session: Session, nodes: Iterable[str]) -> None:
    """Deletes the nodes' queues and exchanges, in this order: leaves first.

    The broker deletes no queue that has a message or a consumer, and here no exchange that leads to
    a node. A node that starts has an inbox before it consumes. Raises Refusal with the first of
    such a node, or Unavailable.
    """
    if not session.deletes:
        raise Refusal(NOT_DELETED)
    try:
        for name in nodes:
            queue = names.node(name)
            alive = await session.exists(names.inbox(name))
            if alive or not await session.delete_queue(queue):
                raise Refusal(f"{name} lives, or jobs wait in its queue")
            if not await session.delete_exchange(queue, if_unused=True):
                raise Refusal(f"a node has joined below {name}")
    except Refusal:
        raise
    except BrokerError as error:
        raise Unavailable(str(error)) from error
