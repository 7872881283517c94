"""How jobs arrive and how long they take. Mean gap and mean service are 1; a load scales gaps."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt

from bench.policy.simulation import lengths

Law = Callable[[random.Random], float]
CV2 = 4.0  # squared coefficient of variation of the hyperexponential law


def exponential(rng: random.Random) -> float:
    """CV² 1: gaps of a Poisson process, and service without memory."""
    return rng.expovariate(1.0)


def deterministic(_rng: random.Random) -> float:
    """Always the same."""
    return 1.0


def hyperexponential(rng: random.Random) -> float:
    """One of two exponential laws with balanced means: CV² is 4.

    With c = CV², the short one is taken with probability (1 + sqrt((c - 1) / (c + 1))) / 2, and a
    law taken with probability p has the mean 1 / (2p): Whitt, "Approximating a point process by a
    renewal process", 1982.
    """
    often = (1 + sqrt((CV2 - 1) / (CV2 + 1))) / 2
    share = often if rng.random() < often else 1 - often
    return rng.expovariate(2 * share)


def answers(rng: random.Random) -> float:
    """Lengths of a language model's answers, at a constant pace of tokens; see `lengths`."""
    return lengths.quantile(rng.random()) / lengths.mean()


ARRIVALS: dict[str, Law] = {"poisson": exponential, "deterministic": deterministic}
SERVICES: dict[str, Law] = {
    "exponential": exponential,
    "deterministic": deterministic,
    "hyperexponential": hyperexponential,
    "answers": answers,
}


def draw(law: Law, count: int, rng: random.Random) -> list[float]:
    """`count` independent values of the law."""
    return [law(rng) for _ in range(count)]


def normalized(values: Sequence[float]) -> list[float]:
    """The values scaled to a mean of exactly 1.

    At a load of 0.95, a sample that happens to bring 1 % more work waits a quarter longer.
    """
    mean = sum(values) / len(values)
    return [value / mean for value in values]


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs in order of arrival: when each arrives, and how long it takes wherever it runs."""

    arrivals: Sequence[float]
    services: Sequence[float]

    @classmethod
    def at_rate(cls, rate: float, gaps: Sequence[float], services: Sequence[float]) -> "Workload":
        """The same jobs at any rate (jobs a mean service time): only the gaps shrink."""
        return cls(list(accumulate(gap / rate for gap in gaps)), services)
