"""Does a series grow? Straight lines through samples, pure.

A process that was restarted begins anew, so lines are drawn within lives only. Each life keeps its own level and all
lives of a kind share one slope, which is what "it grows by so much an hour" means for that kind of process.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.report import Cell, Rows

Point = tuple[float, float]  # seconds, value
MEASURES = ("memory MB", "open files", "threads")
_HOUR = 3600.0


@dataclass(slots=True)
class Life:
    """One process from its start, or ours, to its end, or ours. `series`: measure -> samples."""

    name: str
    pid: int
    series: dict[str, list[Point]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What it is: all nodes below a root are one kind."""
        return "node" if re.fullmatch(r"n\d+", self.name) else self.name

    def add(self, at: float, values: Mapping[str, float]) -> None:
        """Takes one sample of everything."""
        for measure, value in values.items():
            self.series.setdefault(measure, []).append((at, value))

    def settled(self, measure: str, seconds: float) -> list[Point]:
        """The samples after its first `seconds`, in which a process imports and fills its caches, and without the last
        one, in which it may be leaving.
        """
        points = self.series.get(measure, [])
        return [point for point in points if point[0] >= points[0][0] + seconds][:-1]

    def lasted(self) -> float:
        """Seconds between its first and its last sample."""
        points = next(iter(self.series.values()), [])
        return points[-1][0] - points[0][0] if points else 0.0


def slope(lives: Sequence[Sequence[Point]]) -> float | None:
    """Least squares, a common slope and a level for each life, in units an hour; None where time does not pass."""
    above = below = 0.0
    for points in lives:
        if not points:
            continue
        middle = sum(at for at, _ in points) / len(points)
        level = sum(value for _, value in points) / len(points)
        above += sum((at - middle) * (value - level) for at, value in points)
        below += sum((at - middle) ** 2 for at, _ in points)
    return above / below * _HOUR if below else None


def latter_half(points: Sequence[Point]) -> list[Point]:
    """The second half of the time. A leak grows there as it did before; a cache that fills grows less."""
    if not points:
        return []
    middle = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if point[0] >= middle]


def of_processes(lives: Sequence[Life], shortest: float, warm_up: float) -> Rows:
    """A row a kind and measure, of lives that lasted at least `shortest` seconds, without their first `warm_up`."""
    long = [life for life in lives if life.lasted() >= shortest]
    rows: list[Sequence[Cell]] = []
    for kind in dict.fromkeys(life.kind for life in long):
        for measure in MEASURES:
            each = [life.settled(measure, warm_up) for life in long if life.kind == kind]
            steepest = max(
                (found for points in each if (found := slope([points])) is not None), default=None
            )
            late = slope([latter_half(points) for points in each])
            rows.append((kind, measure, len(each), *_line(each), late, steepest))
    columns = (
        "process", "measure", "lives", "mean", "most", "slope per hour", "% per hour", "slope, latter half",
        "steepest life",
    )  # fmt: skip
    return Rows(
        f"within lives of at least {shortest:.0f} s, without their first {warm_up:.0f} s",
        columns,
        rows,
    )


def of_broker(series: Mapping[str, Sequence[Point]]) -> Rows:
    """A row a figure, over the whole run."""
    rows = [(name, *_line([points])) for name, points in series.items()]
    return Rows(
        "the broker's objects over the whole run",
        ("figure", "mean", "most", "slope per hour", "% per hour"),
        rows,
    )


def _line(lives: Sequence[Sequence[Point]]) -> tuple[Cell, ...]:
    """Mean, most, slope, and the slope in percent of the mean."""
    values = [value for points in lives for _, value in points]
    mean = sum(values) / len(values) if values else None
    found = slope(lives)
    percent = 100 * found / mean if found is not None and mean else None
    return mean, max(values, default=None), found, percent
