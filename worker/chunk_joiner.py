"""Chunks of an answer that its reader waits for as a whole: several are sent as one. Pure.

A frame that comes alone costs the API some 0.2 ms of processor time whatever its length, which a
reader of whole answers has no use for. What is held back is computed again if the node dies.
"""

import math
from itertools import chain

from worker.engines.base import Chunk

MAX_SECONDS = 1.0
MAX_HELD = 256  # chunks


class ChunkJoiner:
    """Flushes text at least `seconds` after the last flush. The caller has the clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = min(seconds, MAX_SECONDS)
        self._held: list[Chunk] = []
        self._flushed = -math.inf

    def add(self, chunk: Chunk, now: float) -> Chunk | None:
        """What is to be sent now, if anything. The first text is never held back."""
        self._held.append(chunk)
        if now < self._flushed + self._seconds and len(self._held) < MAX_HELD:
            return None
        self._flushed = now
        return self.take()

    def take(self) -> Chunk | None:
        """All that is held back, as one chunk; without the counts that a run keeps itself."""
        held, self._held = self._held, []
        if len(held) < 2:
            return held[0] if held else None
        return Chunk(
            text="".join([chunk.text for chunk in held]),
            tokens=sum(chunk.tokens for chunk in held),
            ids=tuple(chain.from_iterable(chunk.ids for chunk in held)),
            logprobs=tuple(chain.from_iterable(chunk.logprobs for chunk in held)),
        )
