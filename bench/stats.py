"""Statistics of samples and of streamed answers, the same for every benchmark. Pure."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, quantiles


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in its samples' unit, zero without any. Percentiles: between ranks linear."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float], scale: float = 1.0) -> "Spread":
        """`scale` converts the unit: 1000 for seconds to milliseconds."""
        if not values:
            return cls()
        scaled = [value * scale for value in values]
        mean, largest = fmean(scaled), max(scaled)
        if len(scaled) == 1:
            return cls(1, mean, mean, mean, mean, mean)
        percentiles = quantiles(scaled, n=100, method="inclusive")
        return cls(len(scaled), mean, percentiles[49], percentiles[94], percentiles[98], largest)

    def cells(self, prefix: str, *points: str) -> dict[str, float | None]:
        """Cells of a table row, such as `TTFT p50`; empty cells without samples."""
        if not self.count:
            return dict.fromkeys((f"{prefix} {point}" for point in points), None)
        return {f"{prefix} {point}": getattr(self, point) for point in points}


@dataclass(slots=True)
class Timeline:
    """A streamed answer: the time.perf_counter of each arrival, and its tokens in `counts`."""

    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    ended: float | None = None
    error: str = ""

    def add(self, at: float, tokens: int) -> None:
        self.times.append(at)
        self.counts.append(tokens)

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    def tokens_within(self, begin: float, end: float) -> int:
        """Tokens that arrived after `begin`, up to `end`."""
        first = bisect.bisect_right(self.times, begin)
        last = bisect.bisect_right(self.times, end)
        return sum(self.counts[first:last])

    def gaps(self, begin: float = float("-inf"), end: float = float("inf")) -> list[float]:
        """Seconds between neighbouring arrivals, both within the window."""
        pairs = pairwise(self.times)
        return [after - before for before, after in pairs if before >= begin and after <= end]


def ttfts(timelines: Sequence[Timeline]) -> list[float]:
    """Times to first token, in seconds, of the requests that have one."""
    return [timeline.times[0] - timeline.sent for timeline in timelines if timeline.times]


def first_errors(timelines: Sequence[Timeline], most: int = 3) -> list[str]:
    return sorted({timeline.error for timeline in timelines if timeline.error})[:most]
