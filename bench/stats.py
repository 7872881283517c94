"""Numbers about samples: pure, and the same for every benchmark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of them lie, linear between neighbours. Raises ValueError for none."""
    if not values:
        raise ValueError("a percentile of nothing")
    if not 0 <= percent <= 100:
        raise ValueError(f"not a percentage: {percent}")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Summary:
    """What is reported of one series measured in rounds, in the unit of its samples.

    `quietest` is the median of the round with the lowest median: the machine least disturbed by others.
    """

    count: int
    p50: float
    p95: float
    p99: float
    quietest: float

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> "Summary":
        """Raises ValueError if there is no round or an empty one."""
        everything = [value for each in rounds for value in each]
        p50, p95, p99 = (percentile(everything, percent) for percent in (50, 95, 99))
        return cls(len(everything), p50, p95, p99, min(percentile(each, 50) for each in rounds))


def ratio_by_round(
    rounds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> float:
    """How many times the reference's median: taken round by round, then the median of those.

    Both were measured in turn, so what disturbs a round disturbs both of its medians alike.
    """
    return median(
        percentile(a, 50) / percentile(b, 50) for a, b in zip(rounds, reference, strict=True)
    )


def summaries(series: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Summary]:
    """A summary a series."""
    return {name: Summary.of(rounds) for name, rounds in series.items()}
