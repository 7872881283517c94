"""How fast a line moves: when a waiting job will start, and how wrong such estimates were. Pure: the caller has the
clock.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

HALF_LIFE = 60.0  # seconds after which an observation counts half
REMEMBERED = 200  # jobs whose estimates are compared with what came


@dataclass(slots=True)
class Pace:
    """Estimates waiting times from what was seen lately. Times are seconds on any clock that only goes forward."""

    _at: float | None = None
    _busy: int = 0
    _finished: int = 0
    _slot_seconds: float = 0.0  # that jobs took, fading
    _ended: float = 0.0  # jobs that ended, fading alike
    _taken: float = 0.0  # jobs that left the line, fading alike
    _work: float = 0.0  # and their work

    def observe(self, now: float, busy: int, finished: int) -> None:
        """From now on so many slots are busy; so many jobs have ended since the beginning."""
        if self._at is not None:
            elapsed = max(0.0, now - self._at)
            kept = 0.5 ** (elapsed / HALF_LIFE)
            self._slot_seconds = self._slot_seconds * kept + self._busy * elapsed
            self._ended = self._ended * kept + max(0, finished - self._finished)
            self._taken *= kept
            self._work *= kept
        self._at, self._busy, self._finished = now, busy, finished

    def took(self, work: float) -> None:
        """A job of so much work left the line."""
        self._taken += 1
        self._work += work

    def seconds(self, before: int, work_before: float, slots: int) -> float | None:
        """Until a job starts that has so many others, and their work, in front of it, where all `slots` are busy.

        A slot is busy for the mean of what jobs took (slot-seconds / jobs ended, Little's law), more for more work;
        `slots` of them free one every (that mean / slots) seconds. None while nothing is known.
        """
        if not self._ended or not slots:
            return None
        a_job = self._slot_seconds / self._ended
        average = self._work / self._taken if self._taken else 0.0
        jobs = work_before / average if average else float(before)
        return (jobs + 1) * a_job / slots


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
