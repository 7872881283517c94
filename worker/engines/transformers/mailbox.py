"""How chunks get from whoever computes them to the coroutine that reads them."""

import asyncio
from collections import deque

from worker.engines.base import Chunk, EngineError


def joined(first: Chunk, second: Chunk) -> Chunk:
    """Two chunks in a row as one; neither is the first of a run, which stays alone."""
    return Chunk(
        text=first.text + second.text,
        tokens=first.tokens + second.tokens,
        finish=second.finish,
        ids=first.ids + second.ids,
        logprobs=first.logprobs + second.logprobs,
    )


class Mailbox:
    """Holds at most two chunks, a run's first and one other: what a slow reader has not taken yet is joined.

    Both ends are used in the event loop's thread only.
    """

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self._error: EngineError | None = None
        self._filled = asyncio.Event()

    def put(self, item: Chunk | EngineError) -> None:
        """Adds a chunk, or the error after which nothing follows. If it raises, nothing is added."""
        if self._error is not None:
            return
        if isinstance(item, EngineError):
            self._error = item
        elif self._chunks and not self._chunks[-1].prompt_tokens:
            self._chunks[-1] = joined(self._chunks[-1], item)
        else:
            self._chunks.append(item)
        self._filled.set()

    async def get(self) -> Chunk:
        """The first chunk, then everything since the last call. Raises the EngineError once all before it is read."""
        await self._filled.wait()
        if not self._chunks:
            assert self._error is not None  # noqa: S101 - `put` is the only one who sets the event
            raise self._error
        chunk = self._chunks.popleft()
        if not self._chunks and self._error is None:
            self._filled.clear()
        return chunk
