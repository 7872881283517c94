"""How fast a line moves: when a waiting job will start, and how wrong such estimates were. Pure: the caller has the
clock.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

FOLLOWS = 50  # the mean follows about so many of the latest jobs
OVERDUE = 0.1  # of what a job should take: so much longer at least, if it has taken that already
MOST_SLOTS = 100_000  # looked at; more are as good as so many
REMEMBERED = 200  # jobs whose estimates are compared with what came


class WaitEstimator:
    """What jobs took lately, and what runs. Times are seconds on any clock that only goes forward.

    Which of the running jobs has ended is not known here, only that one has: the oldest is taken for it. That makes no
    difference to the mean.
    """

    def __init__(self) -> None:
        self._running: deque[tuple[float, float]] = (
            deque()
        )  # since when, and the work; oldest first
        self._finished = 0
        self._known = 0  # ended jobs that the means are made of, up to FOLLOWS
        self._seconds = 0.0  # a job
        self._work = 0.0  # of a job

    def started(self, now: float, work: float) -> None:
        """A job of so much work left the line."""
        self._running.append((now, work))

    def observe(self, now: float, busy: int, finished: int) -> None:
        """So many slots are busy now; so many jobs have ended since the beginning. Takes any numbers: they come from
        other nodes.
        """
        busy = max(0, min(busy, MOST_SLOTS))
        for _ in range(min(len(self._running), max(0, finished - self._finished))):
            since, work = self._running.popleft()
            self._learn(now - since, work)
        self._finished = finished
        while len(self._running) > busy:  # they were lost, or run where they are not seen
            self._running.popleft()
        self._running.extend((now, self._work) for _ in range(busy - len(self._running)))

    def _learn(self, seconds: float, work: float) -> None:
        self._known = min(self._known + 1, FOLLOWS)
        self._seconds += (seconds - self._seconds) / self._known
        self._work += (work - self._work) / self._known

    @property
    def job_seconds(self) -> float | None:
        """What a job takes; None while nothing is known."""
        return self._seconds if self._known else None

    def takes(self, work: float) -> float:
        """Seconds that so much work takes a slot."""
        return self._seconds * (work / self._work if self._work else 1.0)

    def forecast(self, now: float, slots: int) -> "Forecast | None":
        """The future of so many slots; None while nothing is known."""
        if not self._known or slots <= 0:
            return None
        slots = min(slots, MOST_SLOTS)
        ends = [
            max(self.takes(work) - (now - since), OVERDUE * self.takes(work))
            for since, work in self._running
        ]
        return Forecast(self, [*ends[-slots:], *[0.0] * (slots - len(ends))])


class Forecast:
    """Goes through the line once, from its head: each job takes the slot that frees first."""

    def __init__(self, estimator: WaitEstimator, free_in: list[float]) -> None:
        self._estimator = estimator
        self._free_in = free_in
        heapq.heapify(self._free_in)

    def start_of(self, work: float) -> float:
        """Seconds until the next job in the line starts, which is of so much work."""
        start = self._free_in[0]
        heapq.heapreplace(self._free_in, start + self._estimator.takes(work))
        return start


@dataclass(slots=True)
class Accuracy:
    """What was told at first to jobs that waited, and what came."""

    _waits: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def add(self, told: float, waited: float) -> None:
        """A job that was told `told` seconds has waited `waited` since."""
        self._waits.append((waited, abs(waited - told)))

    @property
    def waited(self) -> float:
        """Mean seconds of waiting; 0 if nothing waited."""
        return fmean(waited for waited, _ in self._waits) if self._waits else 0.0

    @property
    def error(self) -> float:
        """Mean absolute error in seconds; 0 if nothing waited."""
        return fmean(error for _, error in self._waits) if self._waits else 0.0
