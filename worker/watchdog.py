"""Notices that a step of the engine hangs, or that its thread is dead: nothing else would, as that makes no error."""

import asyncio
from collections.abc import Callable

import structlog

from worker.engines.base import Engine

STEP_SECONDS = (
    120.0  # a step is a piece of a prompt and a token for every row: seconds on a slow CPU
)
FIRST_STEPS = (
    5  # the first step may take this many times as long: a GPU's kernels are compiled in it
)

_LOOKS = 3  # in a row: a process that was stopped for a while (SIGSTOP) finds its step old, and ends it at once

log = structlog.get_logger()


class Watchdog:
    """Looks at `engine` from `start` on; calls `on_hang(seconds)` once if a step takes longer than `limit_seconds`."""

    def __init__(
        self, engine: Engine, limit_seconds: float, on_hang: Callable[[float], None]
    ) -> None:
        self._engine = engine
        self._limit = limit_seconds
        self._on_hang = on_hang
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look; again after a hang or `stop`, for an engine that was started again."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="watchdog")

    async def stop(self) -> None:
        """Looks no more. Not to be awaited from `on_hang`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        looks, seconds = 0, 0.0
        while looks < _LOOKS:
            await asyncio.sleep(min(1.0, self._limit / 10))
            seconds = self._engine.stalled()
            looks = looks + 1 if seconds > self._allowed() else 0
        log.error("the engine does not go on", engine=self._engine.name, seconds=round(seconds, 1))
        self._on_hang(seconds)

    def _allowed(self) -> float:
        return self._limit if self._engine.warm else self._limit * FIRST_STEPS
