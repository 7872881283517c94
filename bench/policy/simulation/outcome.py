"""What a simulation gives, and the figures that are reported of it, in mean service times."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from bench.policy.simulation.laws import Workload
from bench.policy.simulation.plan import Place

WARM_UP = 0.1  # share of the jobs that are not counted, because the system began empty
BATCHES = 20
_STUDENT = 2.093  # 97.5 % quantile of Student's t with BATCHES - 1 degrees of freedom
_LEAST_SHARE = 0.01  # of all waiting, for a node to count as one where jobs wait


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of each job, in order of arrival, and of the nodes' queues."""

    workload: Workload
    starts: Sequence[float]
    ran_on: Sequence[str]  # the node of each job
    slots: Mapping[str, int]  # by node
    places: Mapping[str, Place]  # of the nodes
    waited: Mapping[str, float]  # by node: time that jobs waited there, all jobs together
    largest_backlog: int  # most jobs that waited at one moment

    @property
    def ends(self) -> list[float]:
        """When each job ended."""
        pairs = zip(self.starts, self.workload.services, strict=True)
        return [start + service for start, service in pairs]

    def times_in_system(self) -> list[float]:
        """From arrival to end, of the jobs after the warm-up."""
        return self._since_arrival(self.ends)

    def waiting_times(self) -> list[float]:
        """From arrival to start, of the jobs after the warm-up."""
        return self._since_arrival(self.starts)

    def busy(self) -> dict[str, float]:
        """Slots that were busy on average, by node, from the warm-up to the last arrival."""
        since, until = self.workload.arrivals[self._first], self.workload.arrivals[-1]
        seconds = dict.fromkeys(self.slots, 0.0)
        if until <= since:
            return seconds
        for start, end, node in zip(self.starts, self.ends, self.ran_on, strict=True):
            seconds[node] += max(0.0, min(end, until) - max(start, since))
        return {node: busy / (until - since) for node, busy in seconds.items()}

    def utilisation(self, place: Place | None = None) -> float:
        """Share of the slots (of that place) that were busy."""
        nodes = [node for node in self.slots if place in (None, self.places[node])]
        slots, busy = sum(self.slots[node] for node in nodes), self.busy()
        return sum(busy[node] for node in nodes) / slots if slots else 0.0

    def busiest(self) -> float:
        """Utilisation of the busiest node where jobs wait; without one, of all slots.

        Near 1, the node's backlog hardly ever ends, whatever others could do for it.
        """
        least, busy = _LEAST_SHARE * sum(self.waited.values()), self.busy()
        shares = []
        for node, slots in self.slots.items():
            if self.waited.get(node, 0.0) > least:
                shares.append(busy[node] / slots)
        return max(shares, default=self.utilisation())

    def backlog_share(self) -> dict[Place, float]:
        """Where jobs waited, by time."""
        total = sum(self.waited.values())
        shares: dict[Place, float] = {"root": 0.0, "inner": 0.0, "leaf": 0.0}
        for node, waited in self.waited.items():
            shares[self.places[node]] += waited / total if total else 0.0
        return shares

    @property
    def _first(self) -> int:
        return int(len(self.starts) * WARM_UP)

    def _since_arrival(self, moments: Sequence[float]) -> list[float]:
        pairs = zip(moments, self.workload.arrivals, strict=True)
        return [moment - arrival for moment, arrival in pairs][self._first :]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles, which are nearest ranks."""

    mean: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises ValueError without values."""
        if not values:
            raise ValueError("figures of nothing")
        ordered = sorted(values)
        ranks = [math.ceil(len(ordered) * share) - 1 for share in (0.5, 0.95, 0.99)]
        return cls(fmean(ordered), *(ordered[rank] for rank in ranks))


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
    """Mean and half width of its 95 % confidence interval, by the method of batch means.

    Neighbours in a queue are not independent; the means of long stretches nearly are. Raises
    ValueError for fewer values than BATCHES.
    """
    size = len(values) // BATCHES
    if not size:
        raise ValueError(f"{len(values)} values are too few for {BATCHES} batches")
    means = [fmean(values[start : start + size]) for start in range(0, size * BATCHES, size)]
    return fmean(means), _STUDENT * stdev(means) / math.sqrt(BATCHES)
