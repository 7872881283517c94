"""When a node tells others what has changed: soon, but not for every change."""

import asyncio
from collections.abc import Callable

from topology.dispatch import QUIET_SECONDS

STATE_SECONDS = 0.25  # dashboards are told the state at most this often


class Announcer:
    """Coalesces changes. `counters` (for the parent, at most every `pace()` seconds, the first after a pause at once)
    and `state` (for dashboards) send what is true when they are called, or, when they are given False, only if it is
    something else than they sent last: most of what a node hears changes nothing about it.
    """

    def __init__(
        self,
        counters: Callable[[bool], None],
        state: Callable[[bool], None],
        pace: Callable[[], float],
    ) -> None:
        self._counters = counters
        self._state = state
        self._next: asyncio.TimerHandle | None = None
        self._soon = False  # it comes as soon as it may
        self._next_state: asyncio.TimerHandle | None = None
        self._state_told = 0.0
        self._counters_told = 0.0
        self._pace = pace
        self._begun = False

    def begin(self) -> None:
        """Tells everything now, and changes from now on."""
        self._begun = True
        self.tell_all()

    def touch(self) -> None:
        """Something may have changed."""
        if not self._begun or self._soon:
            return
        pace = self._pace()
        self._soon = pace < QUIET_SECONDS
        if self._next is None or self._soon:
            if self._next is not None:
                self._next.cancel()
            loop = asyncio.get_running_loop()
            self._next = loop.call_at(max(loop.time(), self._counters_told + pace), self._tell)

    def tell_all(self) -> None:
        """Tells everything now, whether it has changed or not."""
        if self._begun:
            self._tell_counters(always=True)
            self._tell_state(always=True)

    def stop(self) -> None:
        """Nothing is told any more, until it begins again."""
        self._begun = self._soon = False
        for timer in (self._next, self._next_state):
            if timer is not None:
                timer.cancel()
        self._next = self._next_state = None

    def _tell(self) -> None:
        self._next, self._soon = None, False
        self._tell_counters()
        if asyncio.get_running_loop().time() - self._state_told >= STATE_SECONDS:
            self._tell_state()
        elif self._next_state is None:
            self._next_state = asyncio.get_running_loop().call_later(
                STATE_SECONDS, self._tell_late_state
            )

    def _tell_late_state(self) -> None:
        self._next_state = None
        self._tell_state()

    def _tell_counters(self, *, always: bool = False) -> None:
        self._counters_told = asyncio.get_running_loop().time()
        self._counters(always)

    def _tell_state(self, *, always: bool = False) -> None:
        self._state_told = asyncio.get_running_loop().time()
        self._state(always)
