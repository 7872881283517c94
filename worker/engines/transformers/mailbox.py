"""How chunks travel from the decoding thread to the coroutine that reads them."""

import asyncio
from collections import deque

from worker.engines.base import Chunk, EngineError


def merge_chunks(first: Chunk, second: Chunk) -> Chunk:
    """Two consecutive chunks as one; neither is the first of a run, which stays separate."""
    return Chunk(
        text=first.text + second.text,
        tokens=first.tokens + second.tokens,
        finish=second.finish,
        ids=first.ids + second.ids,
        logprobs=first.logprobs + second.logprobs,
        cached_tokens=first.cached_tokens + second.cached_tokens,
        prompt_logprobs=first.prompt_logprobs + second.prompt_logprobs,
    )


class Mailbox:
    """Holds at most two chunks, a run's first one and one more: a slow reader gets them merged.

    Both ends are used in the event loop's thread only.
    """

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self._error: EngineError | None = None
        self._filled = asyncio.Event()

    def put(self, item: Chunk | EngineError) -> None:
        """Adds a chunk, or the error that ends the stream. If it raises, nothing was added."""
        if self._error is not None:
            return
        if isinstance(item, EngineError):
            self._error = item
        elif self._chunks and not self._chunks[-1].prompt_tokens:
            self._chunks[-1] = merge_chunks(self._chunks[-1], item)
        else:
            self._chunks.append(item)
        self._filled.set()

    async def get(self) -> Chunk:
        """The first chunk, then all since the last call as one. Raises the error behind them."""
        await self._filled.wait()
        if not self._chunks:
            assert self._error is not None  # noqa: S101 - `put` alone sets the event
            raise self._error
        chunk = self._chunks.popleft()
        if not self._chunks and self._error is None:
            self._filled.clear()
        return chunk
