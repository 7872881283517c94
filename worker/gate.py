"""Lets runs compute side by side, or one of them alone: a job on its last attempt must not convict its neighbours."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Gate:
    """A readers-writer lock in which those who want to be alone go first. `changed()`: `closed` has changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._together = 0
        self._wishing = 0  # to be alone: waiting or computing
        self._alone = False
        self._turns: list[asyncio.Future[None]] = []

    @property
    def closed(self) -> bool:
        """True while nobody new may compute beside others."""
        return self._wishing > 0

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Computes beside others."""
        while self._wishing:
            await self._next_turn()
        self._together += 1
        try:
            yield
        finally:
            self._together -= 1
            self._wake()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Computes when nobody else does, and keeps the others waiting."""
        self._wishing += 1
        self._changed()
        try:
            while self._together or self._alone:
                await self._next_turn()
            self._alone = True
            try:
                yield
            finally:
                self._alone = False
        finally:
            self._wishing -= 1
            self._wake()
            self._changed()

    async def _next_turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        await turn

    def _wake(self) -> None:
        turns, self._turns = self._turns, []
        for turn in turns:
            if not turn.done():
                turn.set_result(None)
