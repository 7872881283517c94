"""Does anything grow over a long run? The memory of each process, from when it has settled on."""

import asyncio
import contextlib
import re
import time
from statistics import linear_regression

import psutil

from bench.harness import Instance
from bench.report import Row, Table

Lives = dict[tuple[str, int], list[tuple[float, float]]]  # kind of process, pid -> seconds, MB
LONG_LIFE = 300.0  # seconds: in a shorter life, noise exceeds any slope that matters
WARM_UP = 0.2  # share of a life in which a process imports and fills its caches
_SAMPLE_SECONDS = 5.0


async def sample(canopy: Instance, lives: Lives) -> None:
    """Adds samples to the lives until cancelled. A restarted process begins a new life."""
    while True:
        for name, record in canopy.processes().items():
            kind = re.sub(r"^n\d+$", "node", name)
            with contextlib.suppress(psutil.Error):  # it is gone
                megabytes = psutil.Process(record.pid).memory_info().rss / 1e6
                lives.setdefault((kind, record.pid), []).append((time.monotonic(), megabytes))
        await asyncio.sleep(_SAMPLE_SECONDS)


def table(lives: Lives, run_seconds: float) -> Table:
    """A row for each life that is long enough, with the slope of a line through its samples."""
    shortest = min(LONG_LIFE, run_seconds / 3)
    rows: list[Row] = []
    for (kind, _), samples in sorted(lives.items()):
        settled = samples[int(len(samples) * WARM_UP) : -1]  # in the last it may be leaving
        if samples[-1][0] - samples[0][0] < shortest or len(settled) < 2:
            continue
        seconds, megabytes = zip(*settled, strict=True)
        slope = linear_regression(seconds, megabytes).slope
        row: dict[str, object] = {"process": kind, "seconds": samples[-1][0] - samples[0][0]}
        rows.append(row | {"most MB": max(megabytes), "MB an hour": 3600 * slope})
    return Table(f"memory in lives of {shortest:.0f} s or more", rows)
