"""What a page's frames cost, and whether the machine had time for them."""

import json
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Browser, Page

# What a page's script does: strings, a regular expression, an object's keys, a tree of elements.
_WORK = """() => {
  const root = document.createElement("div");
  for (let line = 0; line < 400; line++) {
    const text = `- item${line} of **bold** \\`code\\` and [a link](https://example.org/${line})`;
    const words = new Map();
    for (const word of text.repeat(20).split(/[^a-z0-9]+/)) {
      words.set(word, (words.get(word) ?? 0) + 1);
    }
    const item = root.appendChild(document.createElement("p"));
    for (const [word, count] of words) {
      item.appendChild(document.createElement("i")).textContent = word + count;
    }
  }
  return root.innerHTML.length;
}"""
USUAL_WORK = 0.019  # seconds of CPU that it takes on the machine for which the limits were chosen
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


class MainThread:
    """The CPU time of a page's main thread. A navigation starts it anew."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._devtools = page.context.new_cdp_session(page)
        self._devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds(self) -> float:
        """So far."""
        metrics = self._devtools.send("Performance.getMetrics")["metrics"]
        return float(next(entry["value"] for entry in metrics if entry["name"] == "TaskDuration"))

    def slow_down(self, times: int) -> None:
        """Lets it compute only a part of the time."""
        self._devtools.send("Emulation.setCPUThrottlingRate", {"rate": times})

    def slowness(self) -> float:
        """How many times longer this machine computes now than the usual one; at least 1."""
        costs = [self._work() for _ in range(5)]
        return max(1.0, median(costs) / USUAL_WORK)

    def _work(self) -> float:
        before = self.seconds()
        self._page.evaluate(_WORK)
        return self.seconds() - before
