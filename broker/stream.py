"""One request's answer as it reaches the API: every text once and in order, whichever nodes it comes from."""

import asyncio
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

import msgspec

from broker.deadline import expiry, with_time_left
from broker.wire import (
    NO_RUN,
    AnyFrame,
    Delta,
    Failed,
    FailureCode,
    Finished,
    Interrupted,
    Job,
    ResumeGrant,
    ResumeRequest,
    Start,
    Waiting,
)

FAULT_LETTERS = 500  # kept of why a run was lost
JOINED = 512  # pieces of text


class Stream(AsyncIterator[AnyFrame]):
    """The frames of one request (Waiting, Start, Delta), ending after Finished or Failed.

    It is the only place that knows how far the reader is, so it numbers the attempts: a node that gets a restarted job
    asks, and goes on from `text`. Text that nobody has read yet is merged into one Delta, so a slow reader costs at
    most the answer's length.
    """

    def __init__(self, job: Job, forget: Callable[["Stream"], None]) -> None:
        self.job = job
        self.request_id = job.request_id
        self.expires = expiry(job)  # time.monotonic() until which the answer is wanted
        self.attempt = job.attempt  # the newest: frames of others are stale
        self.started = False  # a run of any attempt has begun
        self.ended = False  # the last frame has arrived (it may still be unread)
        self.node = ""  # where the newest run is, or was
        self.waiting = ""  # why nothing runs, as far as a node said
        self.position: int | None = None  # in the line, from 1, while it waits there
        self.starts: float | None = None  # Unix seconds, as estimated when it was told last
        self.faults: tuple[str, ...] = ()  # why runs were lost that count against the job
        self.accepted: asyncio.Future[bool] = (
            asyncio.get_running_loop().create_future()
        )  # a node or the broker has it
        self._forget = forget
        self._closed = False  # it has ended, or nobody reads it any more
        self._on_close: Callable[[Stream], None] | None = None
        self._on_begin: Callable[[], None] | None = None
        self._running = False  # a run of the newest attempt has begun and was not interrupted
        self._incarnation = ""  # which life of the node it runs on
        self._next = 0  # number of the frame that comes next
        self.tokens = len(job.delivered_ids)  # told so far
        self.end: Finished | Failed | None = None
        self._pieces = [job.delivered]
        self._ids = array("I", job.delivered_ids)
        self._frames: deque[AnyFrame] = deque()
        self._unread: list[Delta] = []  # text after the last of `_frames`
        self._arrived = asyncio.Event()

    @property
    def text(self) -> str:
        """All text so far, read or unread."""
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    def push(self, frame: AnyFrame) -> bool:
        """Takes a frame of the newest attempt; repeats are ignored. False if one before it is missing."""
        if self.ended or isinstance(frame, ResumeRequest):
            return True
        self._accept()
        if isinstance(frame, Waiting):
            self._wait(frame)
            return True
        if frame.seq == NO_RUN:
            self._take(frame)
            return True
        if frame.seq != self._next:
            return frame.seq < self._next
        self._next += 1
        self._take(frame)
        return True

    def grant(self, asking: ResumeRequest) -> ResumeGrant:
        """The answer to a node that has a slot for the restarted job: a new attempt, from here on.

        A run that had begun and never said why it ended was lost with its node, which counts against the job: it may be
        what kills nodes. A node of the same incarnation has merely lost its connection.
        """
        self._accept()
        if self._running and asking.incarnation != self._incarnation:
            self.faults = (*self.faults, f"{self.node} died while it ran")
        self.start_over()
        return ResumeGrant(
            request_id=self.request_id,
            number=asking.number,
            attempt=self.attempt,
            delivered=self.text,
            delivered_ids=tuple(self._ids),
            faults=self.faults,
        )

    def lose_run(self, reason: str) -> None:
        """The newest run came to nothing, and that counts against the job."""
        self._running = False
        self.faults = (*self.faults, f"{self.node}: {reason[:FAULT_LETTERS]}")

    def start_over(self) -> Job:
        """The job as it must be run from now on; frames of earlier attempts are stale. Nobody is to blame."""
        self.attempt += 1
        self._running, self._next = False, 0
        job = msgspec.structs.replace(
            self.job,
            attempt=self.attempt,
            restarted=False,
            delivered=self.text,
            delivered_ids=tuple(self._ids),
        )
        return with_time_left(job, self.expires)

    def fail(self, code: FailureCode, message: str) -> None:
        """Ends the stream from this side: no frame can come any more."""
        self.push(
            Failed(
                request_id=self.request_id, seq=NO_RUN, code=code, message=message, retryable=True
            )
        )

    def refuse(self) -> None:
        """Ends the wait for the broker's acceptance: it takes nothing now."""
        if not self.accepted.done():
            self.accepted.set_result(False)

    def when_closed(self, tell: Callable[["Stream"], None]) -> None:
        """Has `tell` called once: when the stream ends or is given up, or now if that has happened."""
        if self._closed:
            tell(self)
        else:
            self._on_close = tell

    def when_begun(self, tell: Callable[[], None]) -> None:
        """Has `tell` called once: when the first run begins or the stream is closed, or now if that has happened."""
        if self.started or self._closed:
            tell()
        else:
            self._on_begin = tell

    def wakes(self, arrived: asyncio.Event) -> None:
        """Sets `arrived` from now on when there is something to read, for who reads several streams with `read_now`."""
        self._arrived = arrived
        arrived.set()

    def read_now(self) -> AnyFrame | None:
        """What is to be read next, if it is here already."""
        if self._frames:
            return self._frames.popleft()
        return self._read_text() if self._unread else None

    async def aclose(self) -> None:
        """Forgets the stream; the job is cancelled wherever it is, if it has not ended."""
        self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyFrame:
        while not self._frames and not self._unread:
            if self.ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._frames.popleft() if self._frames else self._read_text()

    def _accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(True)

    def _begin(self) -> None:
        tell, self._on_begin = self._on_begin, None
        if tell is not None:
            tell()

    def _close(self) -> None:
        self._begin()
        self._forget(self)
        self._closed = True
        tell, self._on_close = self._on_close, None
        if tell is not None:
            tell(self)

    def _wait(self, frame: Waiting) -> None:
        self.waiting, self.position = frame.reason, frame.position
        self.starts = None if frame.seconds is None else time.time() + frame.seconds
        if self._frames and not self._unread and isinstance(self._frames[-1], Waiting):
            self._frames.pop()  # who has not read the former place gets the present one alone
        self._show(frame)

    def _waits_no_more(self) -> None:
        self.waiting, self.position, self.starts = "", None, None

    def _take(self, frame: AnyFrame) -> None:
        match frame:
            case Start():
                self.node, self._incarnation = frame.node, frame.incarnation
                self.started = self._running = True
                self._begin()
                self._waits_no_more()
                self._show(frame)
            case Interrupted():
                self._running = False
                if frame.fault:
                    self.lose_run(frame.reason)
            case Delta():
                self._waits_no_more()  # a root's last word may come after the node's first
                self._keep(frame)
                self._arrived.set()
            case Finished() | Failed():
                self.ended, self.end = True, frame
                self._show(frame)
                self._close()

    def _keep(self, delta: Delta) -> None:
        """Many small pieces cost many times what they hold, so they are joined now and then."""
        self.tokens += delta.tokens
        self._ids.extend(delta.ids)
        self._pieces.append(delta.text)
        if len(self._pieces) > JOINED:
            self._pieces = ["".join(self._pieces)]
        self._unread.append(delta)
        if len(self._unread) > JOINED:
            self._unread = [self._read_text()]

    def _show(self, frame: AnyFrame) -> None:
        if self._unread:
            self._frames.append(self._read_text())
        self._frames.append(frame)
        self._arrived.set()

    def _read_text(self) -> Delta:
        deltas, self._unread = self._unread, []
        if len(deltas) == 1:
            return deltas[0]
        return msgspec.structs.replace(
            deltas[0],
            text="".join(delta.text for delta in deltas),
            tokens=sum(delta.tokens for delta in deltas),
            ids=tuple(number for delta in deltas for number in delta.ids),
            logprobs=tuple(each for delta in deltas for each in delta.logprobs),
        )
