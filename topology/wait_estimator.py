"""When a waiting job starts, and how wrong such estimates were. Pure: the caller has the clock."""

import heapq
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import fmean

MEAN_JOBS = 50  # the running means follow about so many of the latest jobs
OVERDUE_SHARE = 0.1  # of its expected time, that a job which should have ended is given at least
MAX_SLOTS = 100_000  # considered
REMEMBERED = 200  # jobs whose estimates are compared with their actual waits


class WaitEstimator:
    """What jobs took lately, and what runs. Times are seconds on any clock that only goes forward.

    Only the number of finished jobs is known; we assume the oldest finished. That leaves the mean
    as it is.
    """

    def __init__(self) -> None:
        self._running: deque[tuple[float, float]] = deque()  # (start, work), oldest first
        self._finished = 0
        self._sampled = 0  # jobs in the means, up to MEAN_JOBS
        self._mean_seconds = 0.0
        self._mean_work = 0.0

    def started(self, now: float, work: float) -> None:
        """A job of so much work left the queue."""
        self._running.append((now, work))

    def observe(self, now: float, busy: int, finished: int) -> None:
        """`busy` slots now, `finished` jobs in all. Takes any numbers: other nodes report them."""
        busy = max(0, min(busy, MAX_SLOTS))
        for _ in range(min(len(self._running), max(0, finished - self._finished))):
            start, work = self._running.popleft()
            self._learn(now - start, work)
        self._finished = finished
        while len(self._running) > busy:  # lost, or running where this node does not see them
            self._running.popleft()
        while len(self._running) < busy:
            self._running.append((now, self._mean_work))

    def _learn(self, seconds: float, work: float) -> None:
        self._sampled = min(self._sampled + 1, MEAN_JOBS)
        self._mean_seconds += (seconds - self._mean_seconds) / self._sampled
        self._mean_work += (work - self._mean_work) / self._sampled

    @property
    def job_seconds(self) -> float | None:
        """Mean duration of a job; None while nothing is known."""
        if not self._sampled:
            return None
        return self._mean_seconds

    def duration(self, work: float) -> float:
        """Seconds that so much work occupies a slot."""
        if not self._mean_work:
            return self._mean_seconds
        return self._mean_seconds * (work / self._mean_work)

    def forecast(self, now: float, slots: int) -> "Forecast | None":
        """When each of so many slots becomes free; None while nothing is known."""
        if not self._sampled or slots <= 0:
            return None
        slots = min(slots, MAX_SLOTS)
        free_in = []
        for start, work in self._running:
            duration = self.duration(work)
            free_in.append(max(duration - (now - start), OVERDUE_SHARE * duration))
        idle = max(0, slots - len(free_in))
        return Forecast(self, free_in[-slots:] + [0.0] * idle)


class Forecast:
    """Walks the queue once, from its head: each job takes the slot that becomes free first."""

    def __init__(self, estimator: WaitEstimator, free_in: list[float]) -> None:
        self._estimator = estimator
        self._free_in = free_in
        heapq.heapify(self._free_in)

    def next_start(self, work: float) -> float:
        """Seconds until the next job of the queue starts, which is of so much work."""
        start = self._free_in[0]
        heapq.heapreplace(self._free_in, start + self._estimator.duration(work))
        return start


def _bounded_deque() -> deque[float]:
    return deque(maxlen=REMEMBERED)


@dataclass(slots=True)
class Accuracy:
    """First estimates of jobs that waited, beside what they actually waited."""

    _waits: deque[float] = field(default_factory=_bounded_deque)  # actual
    _errors: deque[float] = field(default_factory=_bounded_deque)  # of their estimates

    def add(self, estimated: float, waited: float) -> None:
        """A job that was estimated to wait `estimated` seconds waited `waited`."""
        self._waits.append(waited)
        self._errors.append(abs(waited - estimated))

    @property
    def mean_wait(self) -> float:
        """Mean seconds of waiting; 0 if nothing waited."""
        return _mean(self._waits)

    @property
    def mean_error(self) -> float:
        """Mean absolute error in seconds; 0 if nothing waited."""
        return _mean(self._errors)


def _mean(values: Collection[float]) -> float:
    if not values:
        return 0.0
    return fmean(values)
