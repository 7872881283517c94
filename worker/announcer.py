"""When a node tells others what has changed: soon, but not for every change."""

import asyncio
import time
from collections.abc import Callable

COUNTERS_SECONDS = 0.05  # the parent is told the counters at most this often
STATE_SECONDS = 0.25  # and dashboards the state


class Announcer:
    """Coalesces changes. `counters` and `state` send what is true when they are called."""

    def __init__(self, counters: Callable[[], None], state: Callable[[], None]) -> None:
        self._counters = counters
        self._state = state
        self._next: asyncio.TimerHandle | None = None
        self._next_state: asyncio.TimerHandle | None = None
        self._state_told = 0.0

    def touch(self) -> None:
        """Something has changed."""
        if self._next is None:
            self._next = asyncio.get_running_loop().call_later(COUNTERS_SECONDS, self._tell)

    def tell_all(self) -> None:
        """Tells everything now."""
        self._counters()
        self._tell_state()

    def stop(self) -> None:
        """Nothing is told any more, until the next change."""
        for timer in (self._next, self._next_state):
            if timer is not None:
                timer.cancel()
        self._next = self._next_state = None

    def _tell(self) -> None:
        self._next = None
        self._counters()
        if time.monotonic() - self._state_told >= STATE_SECONDS:
            self._tell_state()
        elif self._next_state is None:
            self._next_state = asyncio.get_running_loop().call_later(STATE_SECONDS, self._tell_late_state)

    def _tell_late_state(self) -> None:
        self._next_state = None
        self._tell_state()

    def _tell_state(self) -> None:
        self._state_told = time.monotonic()
        self._state()
