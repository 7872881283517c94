"""A readers-writer lock for runs: side by side, or one alone.

A job on its last attempt computes alone, so that the death of its node is not blamed on others.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class ReadersWriterLock:
    """Writers go first: while one waits or computes, no new reader is let in.

    `on_change()` is called when `shared_blocked` may have changed.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._readers = 0
        self._writers = 0  # waiting or computing
        self._writer_active = False
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def shared_blocked(self) -> bool:
        """True while no new reader is let in."""
        return self._writers > 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Holds the lock beside other readers."""
        while self._writers:
            await self._wait_for_change()
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self._wake_waiters()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Holds the lock alone."""
        self._writers += 1
        self._on_change()
        try:
            while self._readers or self._writer_active:
                await self._wait_for_change()
            self._writer_active = True
            try:
                yield
            finally:
                self._writer_active = False
        finally:
            self._writers -= 1
            self._wake_waiters()
            self._on_change()

    async def _wait_for_change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
