"""Answers being written, independent of who reads them.

An AnswerWriter consumes one job's stream, stores the text every second, and lets any number of
readers follow: a reader is a position in the text, so attaching again costs nothing, and memory is
bounded by the answer.
"""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from itertools import zip_longest
from typing import Any

import msgspec
import structlog
from django.db import DatabaseError

from api.answers import store
from api.answers.process import identity
from api.answers.record import MAX_FORMAT, Status, StoredAnswer
from api.answers.row_text import as_lines
from api.http import sse
from api.requests import position
from api.storage.text import storable
from broker.stream import Stream
from broker.wire import AnyFrame, Delta, Failed, Finished, Start, Vectors, Waiting

log = structlog.get_logger("canopy.api")

SAVE_EVERY = 1.0  # seconds
HEARTBEAT = 5.0  # seconds after which even an unchanged answer is stored again


MAX_HOPS = 64


def hops(start: Start) -> list[dict[str, Any]]:
    """The way of a run through the tree, as it is stored: each node and the wait there."""
    trail = start.trail[-MAX_HOPS:] or (start.node,)
    waits = start.waits[-MAX_HOPS:][: len(trail)]
    return [
        {"node": node, "wait_ms": round(1000 * seconds)}
        for node, seconds in zip_longest(trail, waits, fillvalue=0.0)
    ]


WhenEnded = Callable[[StoredAnswer], Awaitable[None]]


async def notify_nobody(record: StoredAnswer) -> None:
    """For answers whose end interests nobody but their readers."""


class AnswerWriter:
    """One answer while this process writes it. `record` has all that is known.

    `waiting`: why the job must wait, if that is known already. `when_ended` is called with the
    record once the end is stored.
    """

    def __init__(
        self,
        record: StoredAnswer,
        stream: Stream,
        waiting: str | None,
        when_ended: WhenEnded = notify_nobody,
    ) -> None:
        self.record = record
        record.job = None  # it is stored, and the stream has it: a prompt can be large
        self.ended = False  # if the record is streaming all the same, another process continues
        self._stream = stream
        self._when_ended = when_ended
        self._waiting: Waiting | None = None
        if waiting:
            self._waiting = Waiting(
                request_id=record.request_id, node="", reason=waiting, code="no_node"
            )
        self._waiting_since = time.monotonic()  # when `_waiting` arrived
        self._start: Start | None = None  # of the newest run
        self._clock = AnswerClock(record)
        self._parts = [record.content]
        self._length = len(record.content)
        # Vectors are stored when all are there: another process makes all of them again.
        self._is_whole_only = stream.job.pooling is not None
        self._changed = asyncio.Event()
        self._saved_at = time.monotonic()
        self._unsaved = False
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self, when_done: Callable[["asyncio.Task[None]"], None]) -> None:
        """Writes in a task of its own."""
        name = f"answer {self.record.request_id}"
        # An empty context: the task must not inherit what belongs to the request that started it.
        context = contextvars.Context()
        self._task = asyncio.create_task(self._run(), name=name, context=context)
        self._task.add_done_callback(when_done)

    async def stop(self) -> None:
        """Ends the answer as stopped by its reader, and returns when that is stored."""
        self._stopping = self.record.status == Status.STREAMING
        await self._cancel()

    async def hand_over(self) -> None:
        """Stores the text and stops writing; the answer is another process's to finish."""
        await self._cancel()

    async def follow(self, start: int = 0) -> AsyncGenerator[AnyFrame | None]:
        """The text from character `start` on, then what comes; None in silence.

        Start comes whenever another run writes. Ends with Finished or Failed once that is stored,
        or without them if another process continues the answer.
        """
        last_waiting: Waiting | None = None
        last_start: Start | None = None
        while True:
            changed = self._changed
            text = self._text_from(start)
            if self._start is not None and self._start != last_start:
                last_start = self._start
                yield last_start
            elif text:
                start += len(text)
                yield Delta(request_id=self.record.request_id, text=text)
            elif self._waiting is not None and self._waiting != last_waiting:
                last_waiting = self._waiting
                yield position.with_age(last_waiting, time.monotonic() - self._waiting_since)
            elif self.ended:
                if self.record.status != Status.STREAMING:
                    yield self.record.ending()
                return
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(sse.KEEPALIVE):
                        await changed.wait()
                if not changed.is_set():
                    yield None

    async def _run(self) -> None:
        """Writes the answer to its end, or until `stop` or `hand_over` cancels this."""
        try:
            await self._write()
        except asyncio.CancelledError:
            if self._stopping:
                self._mark_stopped()
        try:
            await self._finish()
        finally:
            self.ended = True
            self._wake_readers()
        if self.record.status != Status.STREAMING:
            await self._when_ended(self.record)

    async def _cancel(self) -> None:
        if self._task is None:
            return
        if self.record.status == Status.STREAMING:  # else the end is being stored already
            self._task.cancel()
        await asyncio.wait({self._task})

    async def _write(self) -> None:
        async for frame in sse.ticking(self._stream, SAVE_EVERY):
            if frame is not None:
                self._apply(frame)
            if self._is_due() and not await self._save():
                return

    def _apply(self, frame: AnyFrame) -> None:
        record = self.record
        match frame:
            case Start():
                if self._length and record.node not in ("", frame.node):
                    record.moved += 1
                record.node, record.trail = frame.node, hops(frame)
                self._start, self._waiting = self._in_stored_format(frame), None
            case Delta():
                self._clock.text_arrived()
                self._parts.append(frame.text)
                self._length += len(frame.text)
                record.ids += frame.ids
                record.completion_tokens += frame.tokens
                self._waiting = None
            case Vectors():
                lines = as_lines(frame.rows)
                self._parts.append(lines)
                self._length += len(lines)
                self._waiting = None
            case Waiting():
                self._waiting, self._waiting_since = frame, time.monotonic()
            case Finished():
                record.status = Status.STOPPED if frame.reason == "cancelled" else Status.DONE
                record.finish_reason = frame.reason
                record.prompt_tokens = frame.prompt_tokens
                record.cached_tokens = frame.cached_tokens
                record.completion_tokens = frame.completion_tokens
                sent_messages = len(self._stream.job.messages or ())
                record.omitted_messages = min(frame.omitted_messages, sent_messages)
            case Failed():
                record.fail(frame.code, frame.message, retryable=frame.retryable)
        self._unsaved = True
        self._wake_readers()

    def _in_stored_format(self, start: Start) -> Start:
        """A run that continues a text is read as its first run was."""
        record = self.record
        if not self._length:
            record.tool_format = start.tool_format[:MAX_FORMAT]
            record.reasoning_format = start.reasoning_format[:MAX_FORMAT]
        return msgspec.structs.replace(
            start, tool_format=record.tool_format, reasoning_format=record.reasoning_format
        )

    def _wake_readers(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _text_from(self, start: int) -> str:
        """The text from that character on, in time proportional to its length."""
        length = self._length - start
        if length <= 0:
            return ""
        tail = ""
        for part in reversed(self._parts):
            if len(tail) >= length:
                break
            tail = part + tail
        return tail[len(tail) - length :]

    def _is_due(self) -> bool:
        if self.record.status != Status.STREAMING:
            return False
        interval = SAVE_EVERY if self._unsaved and not self._is_whole_only else HEARTBEAT
        return time.monotonic() - self._saved_at >= interval

    async def _save(self) -> bool:
        """False if the answer is not ours to write any more; retried if the database is away."""
        self._parts = ["".join(self._parts)]
        if not self._is_whole_only or self.record.status != Status.STREAMING:
            self.record.content = storable(self._parts[0])
        self._clock.update_seconds()
        self._saved_at, self._unsaved = time.monotonic(), False
        try:
            return await store.save(self.record)
        except DatabaseError as error:
            log.warning(
                "an answer could not be stored",
                answer=self.record.handle,
                request_id=self.record.request_id,
                reason=str(error),
            )
            self._unsaved = True
            return True

    async def _finish(self) -> None:
        if not await self._save():
            await self._give_way()
        # Cancels this process's attempts of the job; those of a next owner have higher numbers.
        await self._stream.aclose()

    async def _give_way(self) -> None:
        """The answer was changed elsewhere: stopped, removed, or taken over."""
        stored = await store.current(self.record)
        if stored is not None and not self._is_ours(stored):
            log.warning(
                "another process took this answer over",
                answer=self.record.handle,
                request_id=self.record.request_id,
            )
            return
        self._mark_stopped()
        await store.save_text_of_stopped(self.record)

    def _is_ours(self, stored: StoredAnswer) -> bool:
        return stored.owner == identity() and stored.request_id == self.record.request_id

    def _mark_stopped(self) -> None:
        self.record.status, self.record.finish_reason = Status.STOPPED, "cancelled"


class AnswerClock:
    """How long an answer takes, on this process's clock: its `ttft_ms` and `seconds`.

    The time of former owners is in `seconds` already.
    """

    def __init__(self, record: StoredAnswer) -> None:
        self._record = record
        self._submitted = time.monotonic()
        self._first_text: float | None = None
        self._seconds_before = record.seconds

    def text_arrived(self) -> None:
        """New text has arrived."""
        if self._first_text is not None:
            return
        self._first_text = time.monotonic()
        if self._record.ttft_ms is None:
            self._record.ttft_ms = round(1000 * (self._first_text - self._submitted))

    def update_seconds(self) -> None:
        """Counts the time since the first text."""
        if self._first_text is not None:
            elapsed = time.monotonic() - self._first_text
            self._record.seconds = self._seconds_before + elapsed


class AnswerWriters:
    """The answers that this process writes. `when_ended`: see AnswerWriter."""

    def __init__(self, when_ended: WhenEnded = notify_nobody) -> None:
        self._when_ended = when_ended
        self._writers: dict[tuple[str, int], AnswerWriter] = {}

    def begin(self, record: StoredAnswer, stream: Stream, waiting: str | None) -> AnswerWriter:
        """Starts to write the answer. See AnswerWriter."""
        writer = AnswerWriter(record, stream, waiting, self._when_ended)
        self._writers[record.handle] = writer
        writer.start(when_done=partial(self._done, writer))
        return writer

    def get(self, handle: tuple[str, int]) -> AnswerWriter | None:
        """The answer's writer, if this process is writing it."""
        writer = self._writers.get(handle)
        return None if writer is None or writer.ended else writer

    def handles(self) -> list[tuple[str, int]]:
        """The handles of all answers that are written here."""
        return list(self._writers)

    async def hand_over(self) -> None:
        """Stores all answers as they are, and stops writing."""
        writers = list(self._writers.values())
        await asyncio.gather(*(writer.hand_over() for writer in writers))

    def _done(self, writer: AnswerWriter, task: "asyncio.Task[None]") -> None:
        handle = writer.record.handle
        if self._writers.get(handle) is writer:  # else it goes on with another job
            del self._writers[handle]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:  # fate: taken over when its heartbeat has been silent for long enough
            request_id = writer.record.request_id
            log.error("an answer was lost", answer=handle, request_id=request_id, exc_info=error)
