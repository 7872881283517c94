"""What a simulation gives, and the figures that are reported of it. Times are in mean service times."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from bench.policy.simulation.laws import Workload
from bench.policy.simulation.plan import Place

WARM_UP = 0.1  # share of the jobs that are not counted, because the system began empty
BATCHES = 20
_STUDENT = 2.093  # 97.5 % quantile of Student's t with BATCHES - 1 degrees of freedom


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of each job, in order of arrival, and what the nodes saw."""

    workload: Workload
    starts: Sequence[float]
    ran_on: Sequence[str]  # the node of each job
    slots: Mapping[str, int]  # by node
    places: Mapping[str, Place]  # of the nodes
    waited: Mapping[str, float]  # by node: time that jobs were held there, all jobs together
    largest_backlog: int  # most jobs that were held at one moment

    @property
    def ends(self) -> list[float]:
        """When each job ended."""
        return [
            start + service
            for start, service in zip(self.starts, self.workload.services, strict=True)
        ]

    def times_in_system(self) -> list[float]:
        """From arrival to end, of the jobs after the warm-up."""
        pairs = zip(self.workload.arrivals, self.ends, strict=True)
        return [end - arrival for arrival, end in pairs][self._first :]

    def waiting_times(self) -> list[float]:
        """From arrival to start, of the jobs after the warm-up."""
        pairs = zip(self.workload.arrivals, self.starts, strict=True)
        return [start - arrival for arrival, start in pairs][self._first :]

    def busy(self) -> dict[str, float]:
        """Slots that were busy on average, by node, between the warm-up and the last arrival."""
        since, until = self.workload.arrivals[self._first], self.workload.arrivals[-1]
        found = dict.fromkeys(self.slots, 0.0)
        for start, end, node in zip(self.starts, self.ends, self.ran_on, strict=True):
            found[node] += max(0.0, min(end, until) - max(start, since))
        return {
            node: time / (until - since) if until > since else 0.0 for node, time in found.items()
        }

    def utilisation(self, place: Place | None = None) -> float:
        """Share of the slots (of that place) that were busy."""
        nodes = [node for node in self.slots if place in (None, self.places[node])]
        slots, busy = sum(self.slots[node] for node in nodes), self.busy()
        return sum(busy[node] for node in nodes) / slots if slots else 0.0

    def busiest(self) -> float:
        """Utilisation of the busiest node that holds jobs (1 % of the waiting at least); without one, of all slots.
        Near 1 the node's backlog hardly ever ends, whatever others could do for it.
        """
        least, busy = 0.01 * sum(self.waited.values()), self.busy()
        holding = [
            busy[node] / slots
            for node, slots in self.slots.items()
            if self.waited.get(node, 0.0) > least
        ]
        return max(holding, default=self.utilisation())

    def backlog_share(self) -> dict[Place, float]:
        """Where the time was spent that jobs were held."""
        all_waited = sum(self.waited.values())
        found: dict[Place, float] = {"root": 0.0, "inner": 0.0, "leaf": 0.0}
        for node, waited in self.waited.items():
            found[self.places[node]] += waited / all_waited if all_waited else 0.0
        return found

    @property
    def _first(self) -> int:
        return int(len(self.starts) * WARM_UP)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of one series."""

    mean: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Percentiles are the nearest ranks. Raises ValueError for no values."""
        if not values:
            raise ValueError("figures of nothing")
        ordered = sorted(values)
        ranks = (
            ordered[min(len(ordered) - 1, math.ceil(len(ordered) * share) - 1)]
            for share in (0.5, 0.95, 0.99)
        )
        return cls(fmean(ordered), *ranks)


@dataclass(frozen=True, slots=True)
class Figures:
    """What is reported of one run; see the methods of Outcome."""

    in_system: Spread
    waiting: Spread
    utilisation: float
    busiest: float
    largest_backlog: int
    backlog_share: Mapping[Place, float]

    @classmethod
    def of(cls, outcome: Outcome) -> "Figures":
        """Raises ValueError for an outcome without jobs."""
        return cls(
            in_system=Spread.of(outcome.times_in_system()),
            waiting=Spread.of(outcome.waiting_times()),
            utilisation=outcome.utilisation(),
            busiest=outcome.busiest(),
            largest_backlog=outcome.largest_backlog,
            backlog_share=outcome.backlog_share(),
        )


def confidence(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval, by the method of batch means: neighbours in a queue are
    not independent, the means of long stretches nearly are. Raises ValueError for fewer values than BATCHES.
    """
    size = len(values) // BATCHES
    if not size:
        raise ValueError(f"{len(values)} values are too few for {BATCHES} batches")
    means = [fmean(values[start : start + size]) for start in range(0, size * BATCHES, size)]
    return fmean(means), _STUDENT * stdev(means) / math.sqrt(BATCHES)
