"""One metric of the history as series over time, one for each model, node or user. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from api.operate.history.counts import OTHERS, Kind
from api.operate.history.histogram import Histogram
from api.operate.history.store import DAY, HOUR, KEEP_HOURS, KEEP_MINUTES, MINUTE

Grouping = Literal["all", "model", "node", "user"]
Metric = Literal[
    "requests",
    "failed",
    "cancelled",
    "tokens_in",
    "tokens_out",
    "wait_p50",
    "wait_p95",
    "wait_p99",
    "service_p50",
    "service_p95",
    "service_p99",
    "utilisation",
]

SHOWN = 12  # series; the others' sum is one more
MOST_POINTS = 2_200
STEPS = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY)  # seconds
ALL = "all"


class BadRange(ValueError):
    """The caller's fault: a span of time that cannot be shown; the text says why."""


@dataclass(frozen=True, slots=True)
class Span:
    """[start, end) in Unix seconds, both multiples of `step` (seconds)."""

    start: int
    end: int
    step: int

    @property
    def starts(self) -> list[int]:
        """Where each step starts."""
        return list(range(self.start, self.end, self.step))

    @property
    def by_hour(self) -> bool:
        """True if stored hours will do."""
        return self.step % HOUR == 0


@dataclass(frozen=True, slots=True)
class Series:
    """One line: a value for each step; None where there is none. `total`: over the whole span."""

    name: str
    values: list[float | None]
    total: float | None


def span(start: int, end: int, step: int | None, now: int) -> Span:
    """The steps that show [start, end); without `step` the shortest that fits. Raises BadRange."""
    if end <= start:
        raise BadRange("to: must be after from")
    if start < now - KEEP_HOURS - DAY:
        raise BadRange("from: only 90 days are kept")
    if step is None:
        step = _fitting_step(start, end, now)
    if step not in STEPS:
        raise BadRange(f"step: must be one of {', '.join(map(str, STEPS))} seconds")
    if step < HOUR and start < now - KEEP_MINUTES:
        raise BadRange("step: minutes are kept for a day; use 3600 or more")
    if (end - start) / step > MOST_POINTS:
        raise BadRange(f"step: more than {MOST_POINTS} steps; use a longer one")
    return Span(start // step * step, -(-end // step) * step, step)


def _fitting_step(start: int, end: int, now: int) -> int:
    for step in STEPS:
        kept = step >= HOUR or start >= now - KEEP_MINUTES
        if kept and (end - start) / step <= MOST_POINTS:
            return step
    return STEPS[-1]


# ---- metrics


class SumMetric:
    """A figure of sums, such as their quotient. `columns`: those of the stored rows."""

    def __init__(
        self, unit: str, columns: Sequence[str], value: Callable[[Sequence[float]], float | None]
    ) -> None:
        self.unit = unit
        self.columns = columns
        self.value = value

    def new(self) -> list[float]:
        """Nothing yet."""
        return [0] * len(self.columns)

    def add(self, into: list[float], sums: Sequence[float]) -> None:
        """Adds some time's sums."""
        for place, number in enumerate(sums):
            into[place] += number


class QuantileMetric:
    """A percentile of times. `column`: where their histograms are; `part`: 0 to 1."""

    unit = "seconds"

    def __init__(self, column: str, part: float) -> None:
        self.column = column
        self.part = part

    def new(self) -> Histogram:
        """Nothing yet."""
        return Histogram()

    def add(self, into: Histogram, encoded: str) -> None:
        """Adds some time's histogram."""
        into.merge_encoded(encoded)

    def value(self, times: Histogram) -> float | None:
        """In seconds, to a thousandth; None without any."""
        seconds = times.quantile(self.part)
        return None if seconds is None else round(seconds, 3)


def _first(sums: Sequence[float]) -> float:
    return sums[0]


def _quotient(sums: Sequence[float]) -> float | None:
    """The first divided by the second; None if that is zero."""
    busy, slots = sums
    return None if slots <= 0 else round(busy / slots, 4)


METRICS: dict[Metric, SumMetric | QuantileMetric] = {
    "requests": SumMetric("requests", ["requests"], _first),
    "failed": SumMetric("requests", ["failed"], _first),
    "cancelled": SumMetric("requests", ["cancelled"], _first),
    "tokens_in": SumMetric("tokens", ["prompt_tokens"], _first),
    "tokens_out": SumMetric("tokens", ["completion_tokens"], _first),
    "wait_p50": QuantileMetric("waits", 0.5),
    "wait_p95": QuantileMetric("waits", 0.95),
    "wait_p99": QuantileMetric("waits", 0.99),
    "service_p50": QuantileMetric("services", 0.5),
    "service_p95": QuantileMetric("services", 0.95),
    "service_p99": QuantileMetric("services", 0.99),
    "utilisation": SumMetric("ratio", ["busy_seconds", "slot_seconds"], _quotient),
}

# ---- series


def series(
    cells: Iterable[tuple[int, str, Any]],
    shown: Span,
    names: Sequence[str],
    metric: SumMetric | QuantileMetric,
) -> list[Series]:
    """A line for each name of the cells, in the order of `names`, OTHERS last.

    A cell has a moment, a name, and what the metric adds up.
    """
    steps: dict[str, dict[int, Any]] = {}
    totals: dict[str, Any] = {}
    for at, name, part in cells:
        place = (at - shown.start) // shown.step
        of_name = steps.setdefault(name, {})
        if place not in of_name:
            of_name[place] = metric.new()
        metric.add(of_name[place], part)
        if name not in totals:
            totals[name] = metric.new()
        metric.add(totals[name], part)
    nothing = metric.value(cast(Any, metric.new()))
    lines = []
    for name in (*names, OTHERS):
        if name not in steps:
            continue
        values: list[float | None] = [nothing] * len(shown.starts)
        for place, summed in steps[name].items():
            values[place] = metric.value(summed)
        lines.append(Series(name, values, metric.value(totals[name])))
    return lines


def kind_of(grouping: Grouping) -> Kind:
    """The stored kind that a grouping reads; all requests have a model."""
    return "model" if grouping == "all" else grouping
