"""Deletes what the broker keeps of a tree that has ended."""

import asyncio
from collections.abc import Iterable

from broker.dead_letter_headers import dead_letter_headers
from broker.encoding import decode, encode
from broker.errors import BrokerError, DecodeError, NotFound, Refusal, Unavailable
from broker.session import Delivery, Session
from broker.wire import NO_RUN, Failed, Frames, Job
from topology import names

NOT_DELETED = "quorum queues cannot be deleted safely: use rabbitmqctl delete_queue"
JOB_SECONDS = 5.0  # for each job that waits in such a queue
PREFETCH = 100


def check_deletes(queue_type: str) -> None:
    """Raises Refusal, before anything is asked of the broker, if its queues must stay."""
    if queue_type == "quorum":
        raise Refusal(NOT_DELETED)


async def remove_gone(session: Session, nodes: Iterable[str]) -> None:
    """Ends the jobs that wait for these nodes, and deletes their queues and exchanges in this
    order: leaves first.

    A node that lives keeps what it has, and an exchange that leads to a node stays. A node that
    starts has an inbox before it consumes. Raises Refusal with the first of such a node, or
    Unavailable.
    """
    if not session.deletes:
        raise Refusal(NOT_DELETED)
    try:
        for name in nodes:
            await _remove(session, name)
    except Refusal:
        raise
    except BrokerError as error:
        raise Unavailable(str(error)) from error


async def _remove(session: Session, name: str) -> None:
    queue = names.node(name)
    alive = await session.exists(names.inbox(name))
    if not alive:
        await _end_jobs(session, name)
    if alive or not await session.delete_queue(queue):
        raise Refusal(f"{name} lives, or more jobs came to its queue: try again")
    if not await session.delete_exchange(queue, if_unused=True):
        raise Refusal(f"a node has joined below {name}")


async def _end_jobs(session: Session, name: str) -> None:
    """Ends the jobs that are in the queue now. Raises BrokerError, Refusal."""
    waiting = await session.depth(names.node(name))
    if not waiting:
        return
    deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
    try:
        tag = await session.consume(names.node(name), deliveries.put_nowait, prefetch=PREFETCH)
    except NotFound:
        return
    try:
        for _ in range(waiting):
            async with asyncio.timeout(JOB_SECONDS):
                delivery = await deliveries.get()
                try:
                    await _end(session, name, delivery)
                except BaseException:  # also when time is up: an empty queue would be deleted
                    delivery.requeue()
                    raise
    except TimeoutError as error:
        raise Refusal(f"the jobs in the queue of {name} could not be taken from it") from error
    finally:
        await session.cancel(tag)
        while not deliveries.empty():
            deliveries.get_nowait().requeue()


async def _end(session: Session, name: str, delivery: Delivery) -> None:
    """The job's reader hears why it ends; it becomes a dead letter, to be replayed.

    A job whose reader has left is forgotten, as one in the queue of a node that lives.
    """
    try:
        job = decode(delivery.body, Job)
    except DecodeError as error:
        headers = dead_letter_headers(f"undecodable: {error}", name)
    else:
        reason = f"the tree of model {job.model!r} has ended"
        if not await _tell(session, job, reason):
            delivery.ack()
            return
        headers = dead_letter_headers(reason, name, job)
    await session.publish("", names.DEAD_QUEUE, delivery.body, persistent=True, headers=headers)
    delivery.ack()


async def _tell(session: Session, job: Job, reason: str) -> bool:
    """Sends the last frame; False if nobody reads."""
    if not names.is_reply_queue(job.reply_to):
        return True  # nobody can be told, and why it is so is for people to see
    final = Failed(
        request_id=job.request_id,
        seq=NO_RUN,
        code="no_node",
        message=reason,
        retryable=True,
        token=job.reply_token,
    )
    return await session.publish("", job.reply_to, encode(Frames(frames=(final,))))
