"""Checks for /readyz: one at a time, cached for a second, each with a deadline."""

import asyncio
from collections.abc import Awaitable, Callable


class Probe:
    """`check` returns what is missing, or None; its result is cached for `seconds`.

    While a check takes longer than `deadline` seconds, the result is `silence`.
    """

    def __init__(
        self,
        check: Callable[[], Awaitable[str | None]],
        *,
        silence: str,
        deadline: float = 3.0,
        seconds: float = 1.0,
    ) -> None:
        self._check = check
        self._silence = silence
        self._deadline = deadline
        self._seconds = seconds
        self._task: asyncio.Task[str | None] | None = None
        self._ended = 0.0  # on the loop's clock

    async def problem(self) -> str | None:
        """What is missing now."""
        task = self._current()
        await asyncio.wait([task], timeout=self._deadline)
        return task.result() if task.done() else self._silence

    def _current(self) -> "asyncio.Task[str | None]":
        loop = asyncio.get_running_loop()
        task = self._task
        if task is None or task.get_loop() is not loop or self._is_stale(task, loop.time()):
            task = self._task = loop.create_task(self._run(), name="readiness probe")
        return task

    def _is_stale(self, task: "asyncio.Task[str | None]", now: float) -> bool:
        return task.done() and now - self._ended >= self._seconds

    async def _run(self) -> str | None:
        try:
            return await self._check()
        finally:
            self._ended = asyncio.get_running_loop().time()
