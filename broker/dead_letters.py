"""The queue of dead letters, `canopy.dead`: jobs given up on, and messages that were no jobs.

Reading takes letters off the queue without acknowledging them. A letter is dropped by acknowledging
it; the others return to their old place in the queue when they are given back or the session ends.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from broker.errors import DecodeError
from broker.session import Delivery, Session
from broker.wire import Job, decode
from topology import names

MAX_LETTERS = 10_000  # read at once; the oldest come first
READ_SECONDS = 5.0  # longest wait for a letter: another reader has those that do not come


@dataclass(frozen=True, slots=True)
class Letter:
    """`id`: that of its request, or a hash if it was no job. `at`: Unix seconds."""

    id: str
    reason: str
    node: str
    at: float | None
    job: Job | None
    headers: Mapping[str, object]
    delivery: Delivery

    def drop(self) -> None:
        """Removes it from the queue for good."""
        self.delivery.ack()

    def give_back(self) -> None:
        """Returns it to the queue."""
        self.delivery.requeue()


async def read_letters(session: Session) -> list[Letter]:
    """The letters in the queue now, at most MAX_LETTERS, oldest first. Raises BrokerError."""
    present = min(MAX_LETTERS, await session.depth(names.DEAD_QUEUE) or 0)
    if not present:
        return []
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    # with this limit the broker delivers no letter that arrives meanwhile
    consumer = await session.consume(names.DEAD_QUEUE, arrived.put_nowait, prefetch=present)
    deliveries: list[Delivery] = []
    with suppress(TimeoutError):
        while len(deliveries) < present:
            deliveries.append(await asyncio.wait_for(arrived.get(), READ_SECONDS))
    await session.cancel(consumer)
    return [_letter(delivery) for delivery in deliveries]


def to_replay(job: Job, request_id: str, now: float) -> Job:
    """The job as a new request, without anything left from its earlier runs."""
    return msgspec.structs.replace(
        job,
        request_id=request_id,
        created=now,
        attempt=1,
        restarted=False,
        delivered="",
        delivered_ids=(),
        trail=(),
        seconds_left=None,
        deadline=None,
    )


def _letter(delivery: Delivery) -> Letter:
    headers = delivery.headers
    try:
        job: Job | None = decode(delivery.body, Job)
    except DecodeError:
        job = None
    return Letter(
        id=job.request_id if job else _digest(delivery),
        reason=str(headers.get("reason", "unknown")),
        node=str(headers.get("node", "")),
        at=_moment(headers.get("at")),
        job=job,
        headers=headers,
        delivery=delivery,
    )


def _moment(header: object) -> float | None:
    """The moment comes as text: pika sends no floats in headers."""
    with suppress(ValueError):
        return float(str(header))
    return None


def _digest(delivery: Delivery) -> str:
    headers = json.dumps(delivery.headers, default=str, sort_keys=True)
    return hashlib.sha256(headers.encode() + b"\n" + delivery.body).hexdigest()[:12]
