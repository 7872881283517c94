"""The queue of dead letters, `canopy.dead`: jobs given up on, and messages that were no jobs.

Reading takes letters off the queue without acknowledging them. A letter is dropped by acknowledging
it; the others return to their old place in the queue when they are given back or the session ends.
Meanwhile nobody else sees them, so that readers take turns: an exclusive queue is their lock.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from broker.encoding import decode
from broker.errors import DecodeError, NoSuchLetter, QueueLocked, Unavailable
from broker.session import Delivery, Session
from broker.wire import Job
from topology import names

MAX_LETTERS = 10_000  # read at once; the oldest come first
MAX_BYTES = 100_000_000  # of the letters read at once; the last batch may exceed it
BATCH = 100  # letters
READ_SECONDS = 5.0  # longest wait for a letter that another session took meanwhile
LOCK_SECONDS = 10.0  # longest wait for another reader
LOCK_RETRY_SECONDS = 0.1

Connect = Callable[[], Awaitable[Session]]


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


class DeadLetters:
    """The dead letters, read through a session of their own each time.

    Both methods raise BrokerError, and Unavailable if other readers take too long.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    @asynccontextmanager
    async def all(self, limit: int = MAX_LETTERS) -> AsyncIterator[list[Letter]]:
        """The oldest letters. At the end of the context those that were not dropped return."""
        async with self._session() as session:
            await _lock(session)
            yield await read_letters(session, limit)

    @asynccontextmanager
    async def take(self, ids: Collection[str]) -> AsyncIterator[list[Letter]]:
        """These letters, hidden from others as long as the context lasts.

        Raises NoSuchLetter, and takes none, if one of them is not there.
        """
        async with self._session() as session:
            async with self._session() as locking:
                await _lock(locking)
                letters = await read_letters(session)
                missing = set(ids) - {letter.id for letter in letters}
                if missing:
                    raise NoSuchLetter(sorted(missing)[0])
                chosen = []
                for letter in letters:
                    if letter.id in ids:
                        chosen.append(letter)
                    else:
                        letter.give_back()
            yield chosen

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        session = await self._connect()
        try:
            yield session
        finally:
            await session.close()


async def _lock(session: Session) -> None:
    """Waits until no other session reads; the lock lasts as long as this session."""
    try:
        async with asyncio.timeout(LOCK_SECONDS):
            while not await _locked(session):  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(LOCK_RETRY_SECONDS)
    except TimeoutError as error:
        raise Unavailable("somebody else reads the dead letters; try again") from error


async def _locked(session: Session) -> bool:
    try:
        await session.declare_queue(names.DEAD_READER, exclusive=True)
    except QueueLocked:
        return False
    return True


async def read_letters(session: Session, limit: int = MAX_LETTERS) -> list[Letter]:
    """The letters in the queue now, oldest first, as far as `limit` and MAX_BYTES allow.

    Raises BrokerError.
    """
    present = min(limit, await session.depth(names.DEAD_QUEUE) or 0)
    deliveries: list[Delivery] = []
    size = 0
    while len(deliveries) < present and size < MAX_BYTES:
        batch = await _read_batch(session, min(BATCH, present - len(deliveries)))
        if not batch:
            break
        deliveries += batch
        size += sum(len(delivery.body) for delivery in batch)
    return [_letter(delivery) for delivery in deliveries]


async def _read_batch(session: Session, count: int) -> list[Delivery]:
    """The next letters; fewer if another session has taken some."""
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    # with this limit the broker delivers no letter that arrives meanwhile
    consumer = await session.consume(names.DEAD_QUEUE, arrived.put_nowait, prefetch=count)
    deliveries: list[Delivery] = []
    with suppress(TimeoutError):
        while len(deliveries) < count:
            deliveries.append(await asyncio.wait_for(arrived.get(), READ_SECONDS))
    await session.cancel(consumer)
    return deliveries


def describe(letter: Letter) -> dict[str, Any]:
    """What a list says of it, without any of the user's text. `when`: Unix seconds."""
    headers = letter.headers
    description: dict[str, Any] = {
        "id": letter.id,
        "when": letter.at,
        "model": None,
        "user": None,
        "node": letter.node,
        "reason": letter.reason,
        "attempts": None,
        "trail": _texts(headers.get("trail")),
        "faults": _texts(headers.get("faults")),
    }
    if letter.job is not None:
        description["model"] = letter.job.model
        description["user"] = letter.job.user
        description["attempts"] = letter.job.attempt
    return description


def _texts(header: object) -> list[str]:
    if not isinstance(header, list):
        return []
    return [str(item) for item in header]


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
