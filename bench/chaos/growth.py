"""Does anything grow over a long run? Samples of the processes, and lines through them.

A restarted process begins anew, so lines are fitted within lives. Each life has its own level; all
lives of a kind share one slope, which is what "grows by so much an hour" means.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from bench.harness import Instance
from bench.report import Row, Table
from cli.processes import ProcessRecord

Point = tuple[float, float]  # seconds, value
MEASURES = ("memory MB", "open files", "threads")
LONG_LIFE = 300.0  # seconds: in a shorter life, noise exceeds any slope that matters
WARM_UP = 60.0  # seconds in which a process imports and fills its caches
_SAMPLE_SECONDS = 5.0
_HOUR = 3600.0


@dataclass(slots=True)
class Life:
    """One process, from its start or ours to its end or ours."""

    name: str
    pid: int
    series: dict[str, list[Point]] = field(default_factory=dict)  # measure -> samples

    @property
    def kind(self) -> str:
        """All nodes below the root are one kind."""
        return "node" if re.fullmatch(r"n\d+", self.name) else self.name

    @property
    def seconds(self) -> float:
        points = next(iter(self.series.values()), [])
        return points[-1][0] - points[0][0] if points else 0.0

    def settled(self, measure: str, warm_up: float) -> list[Point]:
        """Without the warm-up, and without the last sample, in which it may be leaving."""
        points = self.series.get(measure, [])
        return [point for point in points if point[0] >= points[0][0] + warm_up][:-1]


async def sample(canopy: Instance, lives: dict[int, Life]) -> None:
    """Adds samples to the lives, which are by pid, until cancelled."""
    start = time.monotonic()
    while True:
        at = time.monotonic() - start
        for name, record in canopy.processes().items():
            life = lives.setdefault(record.pid, Life(name, record.pid))
            for measure, value in read_process(record).items():
                life.series.setdefault(measure, []).append((at, value))
        await asyncio.sleep(_SAMPLE_SECONDS)


def read_process(record: ProcessRecord) -> dict[str, float]:
    """The value of each measure; nothing if the process is gone."""
    process = record.process()
    if process is None:
        return {}
    try:
        with process.oneshot():
            values = (process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())
    except psutil.Error:
        return {}
    return dict(zip(MEASURES, map(float, values), strict=True))


def slope(lives: Sequence[Sequence[Point]]) -> float | None:
    """Least squares, one slope and a level per life, in units an hour; None if no time passes."""
    covariance = variance = 0.0
    for points in lives:
        if not points:
            continue
        middle = sum(at for at, _ in points) / len(points)
        level = sum(value for _, value in points) / len(points)
        covariance += sum((at - middle) * (value - level) for at, value in points)
        variance += sum((at - middle) ** 2 for at, _ in points)
    return covariance / variance * _HOUR if variance else None


def table(lives: Sequence[Life], run_seconds: float) -> Table:
    """A row per kind of process and measure, of lives that are long enough."""
    shortest = min(LONG_LIFE, run_seconds / 3)
    warm_up = min(WARM_UP, shortest / 3)
    long_lives = [life for life in lives if life.seconds >= shortest]
    rows: list[Row] = []
    for kind in dict.fromkeys(life.kind for life in long_lives):
        for measure in MEASURES:
            settled = [life.settled(measure, warm_up) for life in long_lives if life.kind == kind]
            values = [value for points in settled for _, value in points]
            rows.append(
                {
                    "process": kind,
                    "measure": measure,
                    "lives": len(settled),
                    "mean": sum(values) / max(1, len(values)),
                    "most": max(values, default=None),
                    "slope per hour": slope(settled),
                }
            )
    return Table(f"growth within lives of {shortest:.0f} s or more", rows)
