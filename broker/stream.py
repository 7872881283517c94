"""One request's answer as the API gets it: all text once and in order, whatever nodes made it."""

import asyncio
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import chain
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
    Vectors,
    Waiting,
)

FAULT_LETTERS = 500  # kept of the reason why a run was lost
MAX_PIECES = 512  # of text, before they are joined


class Stream(AsyncIterator[AnyFrame]):
    """The frames of one request (Waiting, Start, Delta, Vectors), ending after Finished or Failed.

    Only the stream knows how much of the answer its reader has, so it numbers the attempts: a node
    that gets a restarted job requests to resume, and continues after `text`. Unread text is merged
    into one Delta, so a slow reader costs at most the answer's length.
    """

    def __init__(self, job: Job, forget: Callable[["Stream"], None]) -> None:
        self.job = job
        self.request_id = job.request_id
        self.expires = expiry(job)  # time.monotonic(); None: never
        self.opened = time.monotonic()
        self.began: float | None = None  # the first run did, time.monotonic()
        self.first_text: float | None = None  # it arrived, time.monotonic()
        self.attempt = job.attempt  # the newest: frames of older ones are stale
        self.started = False  # a run of any attempt has begun
        self.ended = False  # the last frame has arrived (it may still be unread)
        self.node = ""  # where the newest run is, or was
        self.trail: tuple[str, ...] = ()  # of its job, root first
        self.waits: tuple[float, ...] = ()  # seconds at each of them
        self.waiting = ""  # why no run has begun, as last reported
        self.position: int | None = None  # in the queue, from 1
        self.starts: float | None = None  # estimated, Unix seconds
        self.faults: tuple[str, ...] = ()  # reasons of lost runs that count against the job
        # whether the broker took the job; a frame from a node proves it
        self.accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._forget = forget
        self._closed = False  # it has ended, or its reader has left
        self._on_close: Callable[[Stream], None] | None = None
        self._on_begin: Callable[[], None] | None = None
        self._running = False  # a run of the newest attempt has begun and not ended
        self._incarnation = ""  # of the node of the newest run
        self._next_seq = 0
        self.tokens = len(job.delivered_ids)  # received so far
        self.end: Finished | Failed | None = None
        self._prompt_logprobs = job.delivered_prompt_logprobs
        self._pieces = [job.delivered]
        self._ids = array("I", job.delivered_ids)
        self._inputs = job.delivered_inputs  # results received so far
        self._frames: deque[AnyFrame] = deque()
        self._unread: list[Delta] = []  # text after the last of `_frames`
        self._arrived = asyncio.Event()

    @property
    def running(self) -> bool:
        """True while a run of the newest attempt goes on, as far as its frames say."""
        return self._running and not self.ended

    @property
    def incarnation(self) -> str:
        """Of the node of the newest run."""
        return self._incarnation

    @property
    def text(self) -> str:
        """All text so far, read or unread."""
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    @property
    def _counted(self) -> int:
        """The tokens of all text; 0 if some came from another process, which did not count it."""
        if self.job.delivered and not self.job.delivered_ids:
            return 0
        return self.tokens

    def push(self, frame: AnyFrame) -> bool:
        """Takes a frame of the newest attempt, repeats aside. False if one before it is missing."""
        if self.ended or isinstance(frame, ResumeRequest):
            return True
        self._accept()
        if isinstance(frame, Waiting):
            self._on_waiting(frame)
            return True
        if frame.seq == NO_RUN:
            self._take(frame)
            return True
        if frame.seq != self._next_seq:
            return frame.seq < self._next_seq
        self._next_seq += 1
        self._take(frame)
        return True

    def grant(self, request: ResumeRequest) -> ResumeGrant:
        """Grants a new attempt, from the present text on, to a node that has a slot.

        A run that had begun and never said why it ended was lost with its node. That counts against
        the job, which may be what kills nodes. A node of the same incarnation has merely lost its
        connection.
        """
        self._accept()
        if self._running and request.incarnation != self._incarnation:
            self.faults = (*self.faults, f"{self.node} died while it ran")
        self.start_over()
        return ResumeGrant(
            request_id=self.request_id,
            number=request.number,
            attempt=self.attempt,
            delivered=self.text,
            delivered_ids=tuple(self._ids),
            delivered_tokens=self._counted,
            delivered_prompt_logprobs=self._prompt_logprobs,
            delivered_inputs=self._inputs,
            faults=self.faults,
        )

    def lose_run(self, reason: str) -> None:
        """The newest run was lost, which counts against the job."""
        self._running = False
        self.faults = (*self.faults, f"{self.node}: {reason[:FAULT_LETTERS]}")

    def start_over(self) -> Job:
        """Begins a new attempt and returns its job. The old one does not count against the job."""
        self.attempt += 1
        self._running, self._next_seq = False, 0
        job = msgspec.structs.replace(
            self.job,
            attempt=self.attempt,
            restarted=False,
            delivered=self.text,
            delivered_ids=tuple(self._ids),
            delivered_tokens=self._counted,
            delivered_prompt_logprobs=self._prompt_logprobs,
            delivered_inputs=self._inputs,
        )
        return with_time_left(job, self.expires)

    def fail(self, code: FailureCode, message: str) -> None:
        """Ends the stream from the API's side."""
        self.push(
            Failed(
                request_id=self.request_id, seq=NO_RUN, code=code, message=message, retryable=True
            )
        )

    def refuse(self) -> None:
        """The broker takes no jobs now: ends the wait for its acceptance."""
        if not self.accepted.done():
            self.accepted.set_result(False)

    def when_closed(self, callback: Callable[["Stream"], None]) -> None:
        """Has `callback` called once, when the stream is closed; now if it is already."""
        if self._closed:
            callback(self)
        else:
            self._on_close = callback

    def when_begun(self, callback: Callable[[], None]) -> None:
        """Has `callback` called once, when the first run begins or the stream is closed."""
        if self.started or self._closed:
            callback()
        else:
            self._on_begin = callback

    def wakes(self, arrived: asyncio.Event) -> None:
        """Sets `arrived` when a frame can be read, for callers that poll several streams."""
        self._arrived = arrived
        arrived.set()

    def read_now(self) -> AnyFrame | None:
        """The next frame, if it has arrived."""
        if self._frames:
            return self._frames.popleft()
        if self._unread:
            return self._read_text()
        return None

    async def aclose(self) -> None:
        """Closes the stream; a job that has not ended is cancelled wherever it is."""
        self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyFrame:
        while not self._frames and not self._unread:
            if self.ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        if self._frames:
            return self._frames.popleft()
        return self._read_text()

    def _accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(True)

    def _begin(self) -> None:
        callback, self._on_begin = self._on_begin, None
        if callback is not None:
            callback()

    def _close(self) -> None:
        self._begin()
        self._forget(self)
        self._closed = True
        callback, self._on_close = self._on_close, None
        if callback is not None:
            callback(self)

    def _on_waiting(self, frame: Waiting) -> None:
        self.waiting, self.position = frame.reason, frame.position
        self.starts = None
        if frame.seconds is not None:
            self.starts = time.time() + frame.seconds
        if self._frames and not self._unread and isinstance(self._frames[-1], Waiting):
            self._frames.pop()  # an unread older position is of no use
        self._show(frame)

    def _clear_waiting(self) -> None:
        self.waiting, self.position, self.starts = "", None, None

    def _take(self, frame: AnyFrame) -> None:
        match frame:
            case Start():
                self.node, self._incarnation = frame.node, frame.incarnation
                self.trail, self.waits = frame.trail, frame.waits
                self.started = self._running = True
                if self.began is None:
                    self.began = time.monotonic()
                self._begin()
                self._clear_waiting()
                self._show(frame)
            case Interrupted():
                self._running = False
                if frame.fault:
                    self.lose_run(frame.reason)
            case Delta():
                self._clear_waiting()  # the root's last Waiting may overtake Start
                self._keep(frame)
                self._arrived.set()
            case Vectors():
                self._clear_waiting()
                self._inputs += len(frame.rows)
                if self.first_text is None:
                    self.first_text = time.monotonic()
                self._show(frame)
            case Finished() | Failed():
                self.ended, self.end = True, frame
                self._show(frame)
                self._close()

    def _keep(self, delta: Delta) -> None:
        """Joins pieces now and then: many small strings take many times their text's memory."""
        if self.first_text is None and delta.text:
            self.first_text = time.monotonic()
        self.tokens += delta.tokens
        self._ids.extend(delta.ids)
        self._prompt_logprobs += len(delta.prompt_logprobs)
        self._pieces.append(delta.text)
        if len(self._pieces) > MAX_PIECES:
            self._pieces = ["".join(self._pieces)]
        self._unread.append(delta)
        if len(self._unread) > MAX_PIECES:
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
            prompt_tokens=max(delta.prompt_tokens for delta in deltas),
            ids=tuple(chain.from_iterable(delta.ids for delta in deltas)),
            logprobs=tuple(chain.from_iterable(delta.logprobs for delta in deltas)),
            prompt_logprobs=tuple(chain.from_iterable(delta.prompt_logprobs for delta in deltas)),
        )
