"""How chunks get from whoever computes them to the coroutine that reads them."""

import asyncio

from worker.engines.base import Chunk, EngineError


def joined(first: Chunk, second: Chunk) -> Chunk:
    """Two chunks in a row as one."""
    return Chunk(
        text=first.text + second.text,
        tokens=first.tokens + second.tokens,
        prompt_tokens=first.prompt_tokens or second.prompt_tokens,
        finish=second.finish,
    )


class Mailbox:
    """Holds at most one chunk: what a slow reader has not taken yet is joined, so it cannot pile up.

    Both ends are used in the event loop's thread only.
    """

    def __init__(self) -> None:
        self._chunk: Chunk | None = None
        self._error: EngineError | None = None
        self._filled = asyncio.Event()

    def put(self, item: Chunk | EngineError) -> None:
        """Adds a chunk, or the error after which nothing follows."""
        if isinstance(item, EngineError):
            self._error = item
        else:
            self._chunk = item if self._chunk is None else joined(self._chunk, item)
        self._filled.set()

    async def get(self) -> Chunk:
        """Everything since the last call. Raises the EngineError once the chunks before it are read."""
        await self._filled.wait()
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            assert self._error is not None  # noqa: S101 - `put` is the only one who sets the event
            raise self._error
        if self._error is None:
            self._filled.clear()
        return chunk
