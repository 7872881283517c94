"""One request's answer as it reaches the API: frames, each once and in order."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

import msgspec

from broker.wire import AnyFrame, Delta, Failed, FailureCode, Finished, FrameNumber


class Stream(AsyncIterator[AnyFrame]):
    """One request's frames, each once and in order, ending after Finished or Failed.

    Text that nobody has read yet is merged into one Delta, so a slow reader costs at most the answer's length.
    """

    def __init__(self, request_id: str, forget: Callable[["Stream"], None]) -> None:
        self.request_id = request_id
        self.ended = False  # the last frame has arrived (it may still be unread)
        self._forget = forget
        self._frames: deque[AnyFrame] = deque()
        self._arrived = asyncio.Event()
        self.accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()  # a frame has arrived
        self._last = (0, -1)  # attempt and seq of the newest frame
        self._length = 0  # of the text taken so far, in characters
        self._skip = 0  # characters of a new attempt that an older one has delivered already

    def push(self, frame: AnyFrame) -> None:
        """Takes a frame from the broker; repeats and older attempts are ignored."""
        if self.ended or (frame.attempt, frame.seq) <= self._last:
            return
        if frame.attempt > self._last[0]:
            self._skip = self._length  # the job's seed is fixed, so a new attempt makes the same text again
        self._last = (frame.attempt, frame.seq)
        if not self.accepted.done():
            self.accepted.set_result(True)
        if isinstance(frame, Delta):
            frame = self._new_part(frame)
        newest = self._frames[-1] if self._frames else None
        if isinstance(frame, Delta) and isinstance(newest, Delta):
            merged = msgspec.structs.replace(frame, text=newest.text + frame.text, tokens=newest.tokens + frame.tokens)
            self._frames[-1] = merged
        else:
            self._frames.append(frame)
        if isinstance(frame, Finished | Failed):
            self.ended = True
            self._forget(self)
        self._arrived.set()

    def _new_part(self, delta: Delta) -> Delta:
        known = min(self._skip, len(delta.text))
        self._skip -= known
        self._length += len(delta.text) - known
        return msgspec.structs.replace(delta, text=delta.text[known:]) if known else delta

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyFrame:
        while not self._frames:
            if self.ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._frames.popleft()

    def fail(self, code: FailureCode, message: str) -> None:
        """Ends the stream from this side: no frame can come any more."""
        attempt, seq = self._last
        number: FrameNumber = {"request_id": self.request_id, "attempt": attempt, "seq": seq + 1}
        self.push(Failed(**number, code=code, message=message, retryable=True))

    async def aclose(self) -> None:
        """Forgets the stream; the job is cancelled wherever it is, if it has not ended."""
        self._forget(self)
