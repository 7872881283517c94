"""One API process's part of the use: counted in memory, added to the database now and then.

A process that is killed loses FLUSH_SECONDS. Nothing is done in the database for a request.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections

from api.operate.history.log import ended
from api.operate.usage import store
from broker.stream import Stream

FLUSH_SECONDS = 10.0
REMEMBERED = 50_000  # combinations that wait for a database that is away
OTHERS = "(others)"  # the user of what exceeds that

log = structlog.get_logger("canopy.api")


@dataclass(frozen=True, slots=True)
class Entry:
    """Whose use of what, on which day (UTC). `key`: its public part; empty for the pages."""

    day: date
    user: str
    key: str
    model: str


@dataclass(slots=True)
class Sums:
    """What it was."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: "Sums") -> None:
        """The other's numbers, too."""
        self.requests += other.requests
        self.failed += other.failed
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens


class UsageLog:
    """Counts this process's requests. `wall` gives Unix seconds."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._sums: dict[Entry, Sums] = {}
        self._flushing = asyncio.Lock()
        self._stopped = False

    def closed(self, stream: Stream) -> None:
        """The stream's job has ended, or its reader left. After `stop` it goes on elsewhere."""
        if self._stopped:
            return
        request = ended(stream, time.monotonic())
        day = datetime.fromtimestamp(self._wall(), UTC).date()
        entry = Entry(day, request.user, stream.job.key, request.model)
        failed = int(request.outcome == "failed")
        sums = Sums(1, failed, request.prompt_tokens, request.completion_tokens)
        self._add(entry, sums)

    async def flush(self) -> None:
        """Adds what was counted to the database; it waits here if that is away.

        It goes on if the caller is cancelled: added twice, it would be wrong.
        """
        await asyncio.shield(asyncio.ensure_future(self._flush()))

    async def flush_repeatedly(self) -> None:
        """Never ends."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def stop(self) -> None:
        """Stores what was counted; what ends from now on is not."""
        self._stopped = True
        await self.flush()

    async def _flush(self) -> None:
        async with self._flushing:
            sums, self._sums = self._sums, {}
            if not sums:
                return
            try:
                # Requests look up keys in the thread that all others share: they must not wait.
                await sync_to_async(_add_alone, thread_sensitive=False)(sums)
            except DatabaseError as error:  # fate: added the next time
                log.warning("the use is stored later", reason=str(error))
                for entry, counted in sums.items():
                    self._add(entry, counted)

    def _add(self, entry: Entry, sums: Sums) -> None:
        if entry not in self._sums and len(self._sums) >= REMEMBERED:
            entry = Entry(entry.day, OTHERS, "", "")
        self._sums.setdefault(entry, Sums()).add(sums)


def _add_alone(sums: dict[Entry, Sums]) -> None:
    """Closes the connection that this thread has opened."""
    try:
        store.add(sums)
    finally:
        connections.close_all()
