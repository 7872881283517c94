"""Short broker operations that no caller waits for, and their owner."""

import asyncio
from collections.abc import Coroutine

import structlog

log = structlog.get_logger()


class Background:
    """Runs operations beside what a node does; `end` cancels and awaits those under way."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._tasks: set[asyncio.Task[object]] = set()

    def run(self, operation: Coroutine[None, None, object]) -> None:
        """Starts `operation`. A failure is logged; the next heartbeat or session repairs it."""
        task: asyncio.Task[object] = asyncio.create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def end(self) -> None:
        """Cancels what is under way and returns when it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.warning("broker operation failed", node=self._node, reason=str(error))
