"""The queue of dead letters, `canopy.dead`: jobs given up on, and messages that were no jobs.

Reading takes what is there off the queue without acknowledging it. A letter is dropped by acknowledging it; all others
return to the queue, at their old place, when they are given back or the session ends, however it ends.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from broker.session import Delivery, Session
from broker.wire import DecodeError, Job, decode
from topology import names

MOST = 10_000  # letters looked at; the oldest come first
READ_SECONDS = 5.0  # without another letter: somebody else holds what is missing


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. `id`: its request's, or a hash for one that was no job. `at`: Unix seconds, None if unknown."""

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


async def take(session: Session) -> list[Letter]:
    """The letters that are in the queue now, at most MOST, oldest first. Raises BrokerError."""
    present = min(MOST, await session.depth(names.DEAD_QUEUE) or 0)
    if not present:
        return []
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    # with this limit the broker hands out no letter that comes meanwhile
    consumer = await session.consume(names.DEAD_QUEUE, arrived.put_nowait, prefetch=present)
    deliveries: list[Delivery] = []
    with suppress(TimeoutError):
        while len(deliveries) < present:
            deliveries.append(await asyncio.wait_for(arrived.get(), READ_SECONDS))
    await session.cancel(consumer)
    return [_letter(delivery) for delivery in deliveries]


def to_replay(job: Job, request_id: str, now: float) -> Job:
    """The job as if it were asked anew: nothing of its former life can hold it up."""
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


def _moment(told: object) -> float | None:
    """AMQP has no floats that pika would send: the moment comes as text."""
    with suppress(ValueError):
        return float(str(told))
    return None


def _digest(delivery: Delivery) -> str:
    told = json.dumps(delivery.headers, default=str, sort_keys=True)
    return hashlib.sha256(told.encode() + b"\n" + delivery.body).hexdigest()[:12]
