"""Bounds how many streams of one answer a user reads, at all API processes together.

They are rows of the database. Those of a process that was killed count until its heartbeat has been
silent for `store.SILENT`.
"""

import asyncio
import time

import structlog
from django.db import DatabaseError

from api.http.sse import Closable
from api.plans import plans, refusals, store
from api.plans.limits import STREAMS

BEAT_SECONDS = 10.0

log = structlog.get_logger("canopy.api")


class AnswerStreams:
    """Those that this process sends."""

    def __init__(self) -> None:
        self.reading: set[int] = set()  # rows
        self._ended: set[int] = set()  # rows still to be removed
        self._has_ended = asyncio.Event()

    async def open(
        self, user: int, answer: tuple[str, int], source: Closable | None = None
    ) -> "CountedStream":
        """One more stream; to be closed, with its source. Raises ApiError 429."""
        subject = plans.current.get()
        most = None if subject is None else subject.limits.streams
        if most is None:
            most = STREAMS
        label, key = answer
        ended = set(self._ended)
        row = await store.open_stream(user, f"{label}:{key}", most, ended)
        self._ended -= ended
        if row is None:
            raise refusals.too_many_streams(most)
        self.reading.add(row)
        return CountedStream(self, row, source)

    def closed(self, row: int) -> None:
        """One less."""
        self.reading.discard(row)
        self._ended.add(row)
        self._has_ended.set()

    async def keep_repeatedly(self) -> None:
        """Has the database forget what ended, and know what goes on. Never ends."""
        next_beat = time.monotonic()
        while True:
            beat = time.monotonic() >= next_beat
            if beat:
                next_beat = time.monotonic() + BEAT_SECONDS
            try:
                await self.keep(beat=beat)
            except DatabaseError as error:  # fate: rows that stay lose their heartbeat
                log.warning("streams are counted later", reason=str(error))
                await asyncio.sleep(1.0)
            try:
                async with asyncio.timeout(max(0.0, next_beat - time.monotonic())):
                    await self._has_ended.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """The process ends: its streams count no more."""
        self._ended |= self.reading
        self.reading.clear()
        try:
            await self.keep(beat=False)
        except DatabaseError as error:  # fate: the rows lose their heartbeat
            log.warning("streams count for a while longer", reason=str(error))

    async def keep(self, *, beat: bool) -> None:
        """See keep_repeatedly. Raises DatabaseError."""
        self._has_ended.clear()
        ended = set(self._ended)
        if ended or beat:
            await store.keep_streams(set(self.reading), ended, beat=beat)
        self._ended -= ended


class CountedStream:
    """Counts until it is closed; closing it again does nothing."""

    def __init__(self, streams: AnswerStreams, row: int, source: Closable | None) -> None:
        self._streams = streams
        self._row: int | None = row
        self._source = source

    async def aclose(self) -> None:
        """The reader has left."""
        row, self._row = self._row, None
        if row is not None:
            self._streams.closed(row)
        if self._source is not None:
            await self._source.aclose()
