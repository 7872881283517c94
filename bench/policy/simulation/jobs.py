"""Jobs: when they arrive and how long they take, in mean service times."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from bench.stats import Spread

WARM_UP = 0.1  # share of the jobs that are not counted, because the system began empty


def exponential(count: int, seed: int) -> list[float]:
    """`count` exponential values, scaled so that their mean is exactly 1."""
    # at a load of 0.95, a sample that happens to bring 1 % more work waits a quarter longer
    rng = random.Random(seed)
    values = [rng.expovariate(1.0) for _ in range(count)]
    mean = sum(values) / count
    return [value / mean for value in values]


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs in order of arrival: when each arrives, and how long it takes wherever it runs."""

    arrivals: list[float]
    services: list[float]

    @classmethod
    def poisson(cls, rate: float, count: int, seed: int) -> "Workload":
        """`rate`: jobs a mean service. Workloads of one seed differ only in the length of gaps."""
        arrivals = list(accumulate(gap / rate for gap in exponential(count, seed)))
        return cls(arrivals, exponential(count, ~seed))

    def times_in_system(self, starts: Sequence[float]) -> Spread:
        """From arrival to end, of the jobs after the warm-up, if each starts then."""
        jobs = list(zip(self.arrivals, starts, self.services, strict=True))
        counted = jobs[int(len(jobs) * WARM_UP) :]
        return Spread.of([start + service - arrival for arrival, start, service in counted])
