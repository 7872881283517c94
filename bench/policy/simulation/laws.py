"""How jobs come and how long they take. Mean gap and mean service are 1; a load scales the gaps."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, islice
from math import sqrt

from bench.policy.simulation import lengths

Law = Callable[[random.Random], float]
CV2 = 4.0  # squared coefficient of variation of the hyperexponential law


def exponential(dice: random.Random) -> float:
    """CV^2 1: gaps of a Poisson process, and service without memory."""
    return dice.expovariate(1.0)


def deterministic(_dice: random.Random) -> float:
    """Always the same."""
    return 1.0


def hyperexponential(dice: random.Random) -> float:
    """One of two exponential laws, with balanced means (each brings half of the work), so that CV^2 is 4.

    The probability of the short one is (1 + sqrt((c - 1) / (c + 1))) / 2 with c = CV^2, and a law that is taken with
    probability p has the mean 1 / (2p): Whitt, "Approximating a point process by a renewal process", 1982.
    """
    often = (1 + sqrt((CV2 - 1) / (CV2 + 1))) / 2
    share = often if dice.random() < often else 1 - often
    return dice.expovariate(2 * share)


def answers(dice: random.Random) -> float:
    """Lengths of a language model's answers, at a constant pace of tokens; see `lengths`."""
    return lengths.quantile(dice.random()) / lengths.mean()


ARRIVALS: dict[str, Law] = {"poisson": exponential, "deterministic": deterministic}
SERVICES: dict[str, Law] = {
    "exponential": exponential,
    "deterministic": deterministic,
    "hyperexponential": hyperexponential,
    "answers": answers,
}


def draw(law: Law, count: int, dice: random.Random) -> list[float]:
    """`count` independent values of the law."""
    return [law(dice) for _ in range(count)]


def repeated(values: Sequence[float], count: int) -> list[float]:
    """A trace's values, from the beginning again when they end, scaled to a mean of 1. Raises ValueError without any
    that is positive.
    """
    total = sum(values)
    if total <= 0 or min(values) < 0:
        raise ValueError("a trace needs values of at least 0, and one above it")
    return [value * len(values) / total for value in islice(cycle(values), count)]


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs in order of arrival: when each comes, and how long it takes wherever it runs."""

    arrivals: Sequence[float]
    services: Sequence[float]

    @classmethod
    def at_rate(cls, rate: float, gaps: Sequence[float], services: Sequence[float]) -> "Workload":
        """The same jobs at any rate (jobs a mean service time): only the gaps shrink."""
        return cls(list(accumulate(gap / rate for gap in gaps)), services)
