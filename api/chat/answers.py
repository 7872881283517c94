"""Answers being written, independent of who reads them.

A Writing consumes one job's stream, keeps the text, stores it every second, and lets any number of readers follow:
a reader is a position in the text, so re-attaching costs nothing and memory is bounded by the answer.
"""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from api import sse
from api.chat import store
from api.chat.models import Message, Status
from broker.stream import Stream
from broker.wire import AnyFrame, Delta, Failed, Finished, Waiting

log = structlog.get_logger("canopy.api")

SAVE_EVERY = 1.0  # seconds
HEARTBEAT = 5.0  # seconds after which even an unchanged answer is stored again


@dataclass(frozen=True, slots=True)
class Told:
    """What a reader gets: an event's name and its fields."""

    name: str
    fields: dict[str, object]


class Writing:
    """One answer while it is written. `message` is stored with all that is known."""

    def __init__(self, message: Message, stream: Stream, waiting: str | None) -> None:
        self.message = message
        self.waiting = waiting
        self._stream = stream
        self._pieces: list[str] = []
        self._changed = asyncio.Event()
        self._saved_at = time.monotonic()
        self._unsaved = False
        self._ending: tuple[str, str | None] = (Status.FAILED, store.INTERRUPTED)  # if cancelled
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Writes the answer to its end; being cancelled ends it as `stop` or a shutdown asked."""
        try:
            async with aclosing(self._stream):
                async for frame in sse.ticking(self._stream, SAVE_EVERY):
                    self._take(frame)
                    if not await self._save_if_due():
                        break
        except asyncio.CancelledError:
            self.message.status, self.message.error = self._ending
        finally:
            await self._finish()

    async def stop(self) -> None:
        """Ends the answer as stopped by its reader and returns when that is stored."""
        await self.cancel(Status.STOPPED, None)

    async def cancel(self, status: str, error: str | None) -> None:
        """Ends the answer in that way, unless it has ended, and returns when that is stored."""
        if self.task is None:
            return
        if self.message.status == Status.STREAMING:  # else it is being stored already
            self._ending = (status, error)
            self.task.cancel()
        await asyncio.wait({self.task})

    async def follow(self) -> AsyncGenerator[Told | None]:
        """What there is, at once, then what comes; None in silence. Ends with `done` or `failed`."""
        read, told = 0, None
        while True:
            changed = self._changed
            if len(self._pieces) > read:
                text = "".join(self._pieces[read:])
                read = len(self._pieces)
                yield Told("delta", {"text": text})
            elif self.waiting and self.waiting != told:
                told = self.waiting
                yield Told("waiting", {"reason": told})
            elif self.message.status != Status.STREAMING:
                yield ending(self.message)
                return
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(sse.KEEPALIVE):
                        await changed.wait()
                if not changed.is_set():
                    yield None

    def _take(self, frame: AnyFrame | None) -> None:
        message = self.message
        match frame:
            case Delta():
                self._pieces.append(frame.text)
                message.completion_tokens += frame.tokens
                self.waiting = None
            case Waiting():
                self.waiting = frame.reason
            case Finished():
                message.status = Status.STOPPED if frame.reason == "cancelled" else Status.DONE
                message.finish_reason = frame.reason
                message.completion_tokens = frame.completion_tokens
            case Failed():
                message.status, message.error = Status.FAILED, frame.message
        if frame is not None:
            self._unsaved = True
            self._tell()

    def _tell(self) -> None:
        """Wakes the readers, each once."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _save_if_due(self) -> bool:
        """Stores the text if it is time; False if the message is not ours to write any more."""
        silence = time.monotonic() - self._saved_at
        if silence < (SAVE_EVERY if self._unsaved else HEARTBEAT) or self.message.status != Status.STREAMING:
            return True
        return await self._save()

    async def _save(self) -> bool:
        self.message.content = "".join(self._pieces)
        self._saved_at = time.monotonic()
        self._unsaved = False
        return await store.save_answer(self.message)

    async def _finish(self) -> None:
        if self.message.status == Status.STREAMING:  # taken from us by another process
            self.message.status = Status.STOPPED
        if self.message.status == Status.STOPPED:
            self.message.finish_reason = "cancelled"
        if not await self._save():
            await store.save_text(self.message)
        self._tell()


def ending(message: Message) -> Told:
    """The last event of an answer that has ended."""
    if message.status == Status.FAILED:
        return Told("failed", {"message": message.error or "the answer failed"})
    reason, tokens = message.finish_reason, message.completion_tokens
    return Told("done", {"finish_reason": reason, "completion_tokens": tokens})


class Answers:
    """The answers this process writes, by message."""

    def __init__(self) -> None:
        self._writing: dict[int, Writing] = {}

    def begin(self, message: Message, stream: Stream, waiting: str | None) -> Writing:
        """Starts to write the answer."""
        writing = Writing(message, stream, waiting)
        self._writing[message.pk] = writing
        # A context of its own: the task must not inherit what belongs to the request that started it.
        writing.task = asyncio.create_task(writing.run(), name=f"answer {message.pk}", context=contextvars.Context())
        writing.task.add_done_callback(lambda task: self._ended(message.pk, task))
        return writing

    def get(self, message: int) -> Writing | None:
        """The answer, if this process is writing it."""
        return self._writing.get(message)

    async def shut_down(self) -> None:
        """Ends all answers as interrupted."""
        await asyncio.gather(*(each.cancel(Status.FAILED, store.INTERRUPTED) for each in list(self._writing.values())))

    def _ended(self, message: int, task: asyncio.Task[None]) -> None:
        self._writing.pop(message, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an answer was lost", message=message, exc_info=error)


answers = Answers()
