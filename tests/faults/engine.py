"""The echo engine with faults on demand (`--engine tests.faults.engine`), by the message's words.

| word | fault |
| --- | --- |
| `poison` | SIGKILL to the process, at the run's first token |
| `die-once:PATH` | the same, but only if there is no file PATH, which is made first |
| `oom` | at the second token, EngineError for every open run, as when a batch runs out of memory |
| `hang` | the step of the first token never ends, for all open runs, until `stop` |
| `stuck` | the same, and not even `stop` ends it: only a new process can serve again |
| `throw` | RuntimeError at the first token, from this run alone: a bug of the engine |
| `throw-once:PATH` | the same, but only if there is no file PATH, which is made first |
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from broker.wire import Job
from worker.engines.base import Chunk, EngineFailed, EngineUnavailable
from worker.engines.echo import EchoEngine, last_message

_DIE_ONCE = "die-once:"
_THROW_ONCE = "throw-once:"


class FaultyEngine(EchoEngine):
    """Echo, a token a chunk, until one of the words above is said to it."""

    def __init__(self, *, model: str, slots: int, token_delay: float) -> None:
        super().__init__(model=model, slots=slots, token_delay=token_delay)
        self.name = "faulty"
        self._burst = 1
        self._batch = _Batch()

    async def start(self) -> None:
        """A new batch. Raises EngineUnavailable when stuck."""
        if self.stuck:
            raise EngineUnavailable("a step hangs for ever; start a new process")
        self._batch = _Batch()

    async def stop(self) -> None:
        """Ends every run, also those that hang."""
        self.stuck = self._batch.stuck
        self._batch.fail("the engine is stopping")

    def stalled(self) -> float:
        """Seconds since a run began to hang."""
        since = self._batch.hangs_since
        return 0.0 if since is None else time.monotonic() - since

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the words up to the fault; see the protocol."""
        batch, words = self._batch, last_message(job).split()
        await batch.step()
        number = 0
        async with aclosing(super().run(job)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                _strike(words, number, batch)
                await batch.step()
                yield chunk
                number += 1


class _Batch:
    """What the runs between a start and a stop share."""

    def __init__(self) -> None:
        self.hangs_since: float | None = None  # monotonic
        self.stuck = False
        self._error = ""
        self._ended = asyncio.Event()

    async def step(self) -> None:
        """What every token of every run waits for. Raises EngineError if the batch has failed."""
        if self.hangs_since is not None:
            await self._ended.wait()
        if self._error:
            raise EngineFailed(self._error)

    def fail(self, reason: str) -> None:
        """Ends every run at its next token, at once if it hangs; the first reason stays."""
        self._error = self._error or reason
        self.hangs_since = None
        self._ended.set()

    def hang(self) -> None:
        """The step that all runs take part in does not end any more."""
        if self.hangs_since is None:
            self.hangs_since = time.monotonic()


def _strike(words: list[str], number: int, batch: _Batch) -> None:
    """The fault that is due before chunk `number` is told; 0 is the one without text."""
    if number == 2 and "oom" in words:
        batch.fail("out of memory")
    if number != 1:
        return
    if "poison" in words or _first_time(words, _DIE_ONCE):
        os.kill(os.getpid(), signal.SIGKILL)
    if "throw" in words or _first_time(words, _THROW_ONCE):
        raise RuntimeError("a bug of the engine")
    if "stuck" in words or "hang" in words:
        batch.stuck = "stuck" in words
        batch.hang()


def _first_time(words: list[str], prefix: str) -> bool:
    """Whether a file named by a word with this prefix is not there yet; it is now."""
    for word in words:
        path = Path(word.removeprefix(prefix))
        if word.startswith(prefix) and not path.exists():
            path.touch()
            return True
    return False


def create(
    *, model: str, model_path: str | None, device: str, slots: int, token_delay: float
) -> FaultyEngine:
    """As for the engines in `worker.engines`."""
    return FaultyEngine(model=model, slots=slots, token_delay=token_delay)
