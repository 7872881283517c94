"""Notices that a step of the engine hangs, or that its thread is dead, which raises no error."""

import asyncio
from collections.abc import Callable

import structlog

from worker.engines.base import Engine

STEP_SECONDS = 120.0  # a prefill chunk and a token for every row take seconds on a slow CPU
FIRST_STEP_FACTOR = 5  # the first step may take so many times as long: it compiles GPU kernels

_CHECKS = 3  # in a row: after a SIGSTOP the step looks old, but ends at once

log = structlog.get_logger()


class Watchdog:
    """Calls `on_hang(seconds)` once if a step of `engine` takes longer than `limit_seconds`."""

    def __init__(
        self, engine: Engine, limit_seconds: float, on_hang: Callable[[float], None]
    ) -> None:
        self._engine = engine
        self._limit = limit_seconds
        self._on_hang = on_hang
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watches from now on. Call it again after a hang or `stop`, for the restarted engine."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="watchdog")

    async def stop(self) -> None:
        """Ends the watch. Not to be awaited from `on_hang`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        checks, seconds = 0, 0.0
        while checks < _CHECKS:
            await asyncio.sleep(min(1.0, self._limit / 10))
            seconds = self._engine.stalled()
            if seconds > self._allowed():
                checks += 1
            else:
                checks = 0
        log.error("the engine hangs", engine=self._engine.name, seconds=round(seconds, 1))
        self._on_hang(seconds)

    def _allowed(self) -> float:
        if self._engine.warm:
            return self._limit
        return self._limit * FIRST_STEP_FACTOR
