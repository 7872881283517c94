"""Answers being written, independent of who reads them.

A Writing consumes one job's stream, keeps the text, stores it every second, and lets any number of readers follow:
a reader is a position in the text, so re-attaching costs nothing and memory is bounded by the answer.
"""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncGenerator

import structlog
from django.db import DatabaseError

from api.answers import store
from api.answers.process import identity
from api.answers.record import Status, StoredAnswer
from api.http import sse
from api.http.parsing import storable
from api.requests import position
from broker.stream import Stream
from broker.wire import AnyFrame, Delta, Failed, Finished, Waiting

log = structlog.get_logger("canopy.api")

SAVE_EVERY = 1.0  # seconds
HEARTBEAT = 5.0  # seconds after which even an unchanged answer is stored again


class Writing:
    """One answer while this process writes it. `record` is stored with all that is known."""

    def __init__(self, record: StoredAnswer, stream: Stream, waiting: str | None) -> None:
        self.record = record
        record.job = None  # is stored, and the stream has it: a prompt can be large
        self.over = (
            False  # nothing more is written here; streaming all the same: another process goes on
        )
        self.task: asyncio.Task[None] | None = None
        self._stream = stream
        self._waiting = (
            Waiting(request_id=record.request_id, node="", reason=waiting) if waiting else None
        )
        self._waiting_since = time.monotonic()  # when `_waiting` came
        self._pieces = [record.content]
        self._length = len(record.content)
        self._changed = asyncio.Event()
        self._saved_at = time.monotonic()
        self._unsaved = False
        self._stopping = False

    async def run(self) -> None:
        """Writes the answer to its end, or until `stop` or `hand_over` cancels this."""
        try:
            await self._write()
        except asyncio.CancelledError:
            if self._stopping:
                self._end_as_stopped()
        try:
            await self._finish()
        finally:
            self.over = True
            self._tell()

    async def stop(self) -> None:
        """Ends the answer as stopped by its reader and returns when that is stored."""
        self._stopping = self.record.status == Status.STREAMING
        await self._cancel()

    async def hand_over(self) -> None:
        """Stores the text and stops writing; the answer is another process's to finish."""
        await self._cancel()

    async def follow(self, read: int = 0) -> AsyncGenerator[AnyFrame | None]:
        """The text from that character on, at once, then what comes; None in silence. Ends with Finished or Failed, or
        without them if the answer goes on elsewhere.
        """
        told = None
        while True:
            changed = self._changed
            if text := self._text_from(read):
                read += len(text)
                yield Delta(request_id=self.record.request_id, text=text)
            elif self._waiting is not None and self._waiting != told:
                told = self._waiting
                yield position.with_age(told, time.monotonic() - self._waiting_since)
            elif self.record.status != Status.STREAMING:
                yield self.record.ending()
                return
            elif self.over:
                return
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(sse.KEEPALIVE):
                        await changed.wait()
                if not changed.is_set():
                    yield None

    async def _cancel(self) -> None:
        if self.task is None:
            return
        if self.record.status == Status.STREAMING:  # else it is being stored already
            self.task.cancel()
        await asyncio.wait({self.task})

    async def _write(self) -> None:
        async for frame in sse.ticking(self._stream, SAVE_EVERY):
            if frame is not None:
                self._take(frame)
            if self._is_due() and not await self._save():
                return

    def _take(self, frame: AnyFrame) -> None:
        record = self.record
        match frame:
            case Delta():
                self._pieces.append(frame.text)
                self._length += len(frame.text)
                record.ids += frame.ids
                record.completion_tokens += frame.tokens
                self._waiting = None
            case Waiting():
                self._waiting, self._waiting_since = frame, time.monotonic()
            case Finished():
                record.status = Status.STOPPED if frame.reason == "cancelled" else Status.DONE
                record.finish_reason = frame.reason
                record.prompt_tokens, record.completion_tokens = (
                    frame.prompt_tokens,
                    frame.completion_tokens,
                )
                record.omitted_messages = min(
                    frame.omitted_messages, len(self._stream.job.messages or ())
                )
            case Failed():
                record.fail(frame.code, frame.message, retryable=frame.retryable)
        self._unsaved = True
        self._tell()

    def _tell(self) -> None:
        """Wakes the readers, each once."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _text_from(self, read: int) -> str:
        """The text from that character on; costs no more than it is long."""
        wanted, tail = self._length - read, ""
        for piece in reversed(self._pieces):
            if len(tail) >= wanted:
                break
            tail = piece + tail
        return tail[len(tail) - wanted :] if wanted > 0 else ""

    def _is_due(self) -> bool:
        silence = time.monotonic() - self._saved_at
        return self.record.status == Status.STREAMING and silence >= (
            SAVE_EVERY if self._unsaved else HEARTBEAT
        )

    async def _save(self) -> bool:
        """False if the answer is not ours to write any more. A database that is away is tried again."""
        self._pieces = ["".join(self._pieces)]
        self.record.content = storable(self._pieces[0])
        self._saved_at, self._unsaved = time.monotonic(), False
        try:
            return await store.save(self.record)
        except DatabaseError as error:
            log.warning(
                "an answer could not be stored", answer=self.record.handle, reason=str(error)
            )
            self._unsaved = True
            return True

    async def _finish(self) -> None:
        if not await self._save():
            await self._give_way()
        await (
            self._stream.aclose()
        )  # ends this process's copies of the job; a next owner's have higher numbers

    async def _give_way(self) -> None:
        """Somebody else has changed the answer: it was stopped or removed, or taken over."""
        found = await store.current(self.record)
        if found is not None and found.owner != identity():
            log.warning("another process took this answer over", answer=self.record.handle)
            return
        self._end_as_stopped()
        await store.save_text_of_stopped(self.record)

    def _end_as_stopped(self) -> None:
        self.record.status, self.record.finish_reason = Status.STOPPED, "cancelled"


class Writings:
    """The answers that this process writes."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, int], Writing] = {}

    def begin(self, record: StoredAnswer, stream: Stream, waiting: str | None) -> Writing:
        """Starts to write the answer. `waiting`: why nothing will come at once, if that is known already."""
        writing = self._all[record.handle] = Writing(record, stream, waiting)
        # A context of its own: the task must not inherit what belongs to the request that started it.
        name = f"answer {record.request_id}"
        writing.task = asyncio.create_task(writing.run(), name=name, context=contextvars.Context())
        writing.task.add_done_callback(lambda task: self._ended(record.handle, task))
        return writing

    def get(self, handle: tuple[str, int]) -> Writing | None:
        """The answer, if this process is writing it."""
        writing = self._all.get(handle)
        return None if writing is None or writing.over else writing

    def handles(self) -> list[tuple[str, int]]:
        """The handles of all answers that are written here."""
        return list(self._all)

    async def hand_over(self) -> None:
        """Stores all answers as far as they are, and stops writing."""
        await asyncio.gather(*(each.hand_over() for each in list(self._all.values())))

    def _ended(self, handle: tuple[str, int], task: asyncio.Task[None]) -> None:
        self._all.pop(handle, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # It is taken over when its heartbeat has been silent for long enough.
            log.error("an answer was lost", answer=handle, exc_info=error)
