"""What a page's frames cost, and whether the machine had time for them."""

import json
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

_CATEGORIES = ["devtools.timeline", "disabled-by-default-devtools.timeline"]


@dataclass
class Trace:
    """`frames`: milliseconds of CPU that the main thread spent in each frame. Filled at the end."""

    frames: list[float]

    def share_within(self, milliseconds: float) -> float:
        """The part of the frames that cost less."""
        return sum(cost < milliseconds for cost in self.frames) / len(self.frames)


@contextmanager
def traced(browser: Browser, page: Page) -> Iterator[Trace]:
    """Traces the page, whose script asks for every frame meanwhile."""
    trace = Trace([])
    browser.start_tracing(page=page, categories=_CATEGORIES)
    try:
        yield trace
    finally:
        trace.frames = _frame_costs(json.loads(browser.stop_tracing())["traceEvents"])


def _frame_costs(events: list[dict[str, Any]]) -> list[float]:
    begins = [event for event in events if event["name"] == "FireAnimationFrame"]
    threads = {(event["pid"], event["tid"]) for event in begins}
    starts = sorted({event["ts"] for event in begins})
    costs = [0.0] * len(starts)
    for event in events:
        if event["name"] != "RunTask" or (event["pid"], event["tid"]) not in threads:
            continue
        frame = bisect(starts, event["ts"]) - 1
        if frame >= 0:
            costs[frame] += event.get("tdur", 0) / 1000
    return costs


QUIET = 0.5  # of the processors' time idle: then wall time says something of the page


class SpareTime:
    """How much of the processors was idle since then: with little, wall time says nothing."""

    def __init__(self) -> None:
        self._idle, self._total = _processor_times()

    def share(self) -> float:
        """Between 0 and 1."""
        idle, total = _processor_times()
        return (idle - self._idle) / max(1, total - self._total)


def _processor_times() -> tuple[int, int]:
    """Idle and all clock ticks of all processors, since the machine started."""
    first_line = Path("/proc/stat").read_text().splitlines()[0]
    ticks = [int(field) for field in first_line.split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
