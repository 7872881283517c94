"""Short operations that nobody waits for, and who owns them."""

import asyncio
from collections.abc import Coroutine

import structlog

log = structlog.get_logger()


class Background:
    """Runs broker operations beside what a node does; `end` cancels and awaits those still under way."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._tasks: set[asyncio.Task[object]] = set()

    def run(self, work: Coroutine[None, None, object]) -> None:
        """Starts `work`. Its failure is logged: the next beat, or the next session, heals what it left undone."""
        task: asyncio.Task[object] = asyncio.create_task(work)
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
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("broker operation failed", node=self._node, reason=str(error))
