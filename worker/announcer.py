"""Sends a node's counters and state when they have changed: soon, but not for every change."""

import asyncio
from collections.abc import Callable

from topology.dispatch import QUIET_SECONDS

STATE_SECONDS = 0.25  # between two states for dashboards, at least


class Announcer:
    """Coalesces changes.

    `send_counters(always)` reports to the parent, at most every `report_seconds()`; the first
    report after a pause goes at once. `send_state(always)` is for dashboards. Both send what is
    true when they are called; with `always` false only if it differs from what they sent last, as
    most events change nothing.
    """

    def __init__(
        self,
        send_counters: Callable[[bool], None],
        send_state: Callable[[bool], None],
        report_seconds: Callable[[], float],
    ) -> None:
        self._send_counters = send_counters
        self._send_state = send_state
        self._report_seconds = report_seconds
        self._next_report: asyncio.TimerHandle | None = None
        self._urgent = False  # the next report is scheduled as early as allowed
        self._next_state: asyncio.TimerHandle | None = None
        self._state_sent_at = 0.0
        self._counters_sent_at = 0.0
        self._begun = False

    def begin(self) -> None:
        """Sends everything now, and changes from now on."""
        self._begun = True
        self.send_all()

    def touch(self) -> None:
        """Something may have changed."""
        if not self._begun or self._urgent:
            return
        seconds = self._report_seconds()
        self._urgent = seconds < QUIET_SECONDS
        if self._next_report is not None:
            if not self._urgent:
                return
            self._next_report.cancel()
        loop = asyncio.get_running_loop()
        at = max(loop.time(), self._counters_sent_at + seconds)
        self._next_report = loop.call_at(at, self._report)

    def send_all(self) -> None:
        """Sends everything now, changed or not."""
        if self._begun:
            self._report_counters(always=True)
            self._report_state(always=True)

    def stop(self) -> None:
        """Sends nothing more until it begins again."""
        self._begun = self._urgent = False
        for timer in (self._next_report, self._next_state):
            if timer is not None:
                timer.cancel()
        self._next_report = self._next_state = None

    def _report(self) -> None:
        self._next_report, self._urgent = None, False
        self._report_counters()
        loop = asyncio.get_running_loop()
        if loop.time() - self._state_sent_at >= STATE_SECONDS:
            self._report_state()
        elif self._next_state is None:
            self._next_state = loop.call_later(STATE_SECONDS, self._report_late_state)

    def _report_late_state(self) -> None:
        self._next_state = None
        self._report_state()

    def _report_counters(self, *, always: bool = False) -> None:
        self._counters_sent_at = asyncio.get_running_loop().time()
        self._send_counters(always)

    def _report_state(self, *, always: bool = False) -> None:
        self._state_sent_at = asyncio.get_running_loop().time()
        self._send_state(always)
