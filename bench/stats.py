"""Statistics of samples, the same for every benchmark. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
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
