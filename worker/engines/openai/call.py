"""One request to a server while it lasts: bounded waits, ended from outside, silence noticed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from worker.engines.base import EngineStopped

T = TypeVar("T")


class Call:
    """A taken slot. Its run waits through `within` alone, so that `stop` can end it anywhere."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.last_received = 0.0  # monotonic; 0.0: nothing yet
        self.answering = False  # the first token is here: from now on silence is odd
        self.reading = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._limit: asyncio.Timeout | None = None
        self._stopped = False

    def stop(self) -> None:
        """Ends the run: what it waits for raises EngineStopped."""
        self._stopped = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def within(self, seconds: float, work: Callable[[], Awaitable[T]]) -> T:
        """Awaits `work`. Raises TimeoutError after `seconds`, EngineStopped after `stop`."""
        if self._stopped:
            raise EngineStopped
        try:
            async with asyncio.timeout(seconds) as self._limit:
                return await work()
        except TimeoutError:
            if self._stopped:
                raise EngineStopped from None
            raise
        finally:
            self._limit = None

    async def read(self, seconds: float, work: Callable[[], Awaitable[T]]) -> T:
        """The same for what the server sends. Silence counts from now at the earliest, as the
        run's own reader may be slow.
        """
        if self.answering:
            self.last_received = time.monotonic()
        self.reading = True
        try:
            received = await self.within(seconds, work)
            self.last_received = time.monotonic()
            return received
        finally:
            self.reading = False
