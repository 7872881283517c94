"""Statistics of samples, the same for every benchmark. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between neighbouring ranks. Raises ValueError without values."""
    if not values:
        raise ValueError("a percentile of nothing")
    if not 0 <= percent <= 100:
        raise ValueError(f"not a percentage: {percent}")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below, above = math.floor(rank), math.ceil(rank)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in the unit of its samples; all zero without samples."""

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
        ordered = sorted(value * scale for value in values)
        return cls(
            count=len(ordered),
            mean=fmean(ordered),
            p50=percentile(ordered, 50),
            p95=percentile(ordered, 95),
            p99=percentile(ordered, 99),
            max=ordered[-1],
        )

    def cells(self, prefix: str, *points: str) -> dict[str, float | None]:
        """Cells of a table row, such as `TTFT p50`; empty cells without samples."""
        return {
            f"{prefix} {point}": getattr(self, point) if self.count else None for point in points
        }


def ratio_by_round(
    rounds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> float:
    """The median over the rounds of the ratio of medians.

    Contenders take turns within a round, so a busy machine disturbs both medians alike.
    """
    pairs = zip(rounds, reference, strict=True)
    return median(percentile(ours, 50) / percentile(theirs, 50) for ours, theirs in pairs)
