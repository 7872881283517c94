"""How far a stream is behind its schedule. Pure.

A stream that asks at `sent` for `rate` tokens a second is due to have its k-th token (from 1) at `sent + k / rate`: the
engine waits that long before each. So its lateness holds all that the service adds, the way to the first token too,
which no later token can make up for. What comes after is seen apart, by the schedule that begins with the first token.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from bench.stats import percentile

BEHIND = 0.250  # seconds; a stream that is later than this has stuttered


@dataclass(slots=True)
class Track:
    """What one stream received: moments (time.perf_counter) and how many tokens came at each."""

    rate: float
    sent: float = 0.0
    arrivals: "array[float]" = field(default_factory=lambda: array("d"))
    counts: "array[int]" = field(default_factory=lambda: array("I"))
    error: str = ""

    def took(self, now: float, tokens: int) -> None:
        """So many tokens came at once."""
        self.arrivals.append(now)
        self.counts.append(tokens)

    def first_token(self) -> float | None:
        """Seconds from the request to its first token; None if none came."""
        return self.arrivals[0] - self.sent if self.arrivals else None

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between two arrivals that follow each other, in the window."""
        return [later - at for at, later in pairwise(self.arrivals) if begin <= at and later <= end]

    def lateness(self, begin: float, end: float) -> list[float]:
        """Seconds behind the schedule of each token that came in the window, and of the one that is due at its end."""
        return self._behind(self.sent, begin, end)

    def lag(self, begin: float, end: float) -> list[float]:
        """The same, but by the schedule that begins with the first token: below 0 if that one was later than others."""
        first = self.first_token()
        return self._behind(
            self.sent if first is None else self.arrivals[0] - 1 / self.rate, begin, end
        )

    def _behind(self, start: float, begin: float, end: float) -> list[float]:
        late = [
            now - start - number / self.rate
            for now, number in self._tokens()
            if begin <= now <= end
        ]
        had = sum(
            count for now, count in zip(self.arrivals, self.counts, strict=True) if now <= end
        )
        return [*late, max(0.0, end - start - (had + 1) / self.rate)]

    def received(self, begin: float, end: float) -> int:
        """Tokens that came in the window."""
        return sum(
            count
            for now, count in zip(self.arrivals, self.counts, strict=True)
            if begin <= now <= end
        )

    def _tokens(self) -> Iterator[tuple[float, int]]:
        """Every token's arrival and number."""
        number = 0
        for now, count in zip(self.arrivals, self.counts, strict=True):
            for _ in range(count):
                number += 1
                yield now, number


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in milliseconds; all 0 of nothing."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, seconds: list[float]) -> "Spread":
        """Of samples in seconds."""
        if not seconds:
            return cls()
        ordered = sorted(seconds)
        return cls(*(1000 * percentile(ordered, each) for each in (50, 95, 99, 100)))


@dataclass(frozen=True, slots=True)
class Reading:
    """What all streams of one run received in its window."""

    streams: int
    seconds: float
    delivered: float  # tokens received / tokens asked for
    tokens: int
    writes: int  # arrivals that brought them
    first_token: Spread
    gap: Spread
    late: Spread  # over all tokens
    worst_stream: float  # ms: the largest of the streams' own 99th percentiles
    worst_lag: float  # ms: the same by the schedules that begin with the first token
    never_behind: float  # share of the streams that were never later than BEHIND
    errors: dict[str, int]

    @property
    def holds(self) -> bool:
        """No stream was behind by more than BEHIND at its 99th percentile, and none broke."""
        return not self.errors and self.worst_stream <= 1000 * BEHIND


def read(tracks: list[Track], begin: float, end: float) -> Reading:
    """Sums the window up. Raises ValueError for no streams."""
    late = [track.lateness(begin, end) for track in tracks]
    gaps = [gap for track in tracks for gap in track.gaps(begin, end)]
    firsts = [first for track in tracks if (first := track.first_token()) is not None]
    tokens = sum(track.received(begin, end) for track in tracks)
    asked = sum(track.rate for track in tracks) * (end - begin)
    errors: dict[str, int] = {}
    for track in tracks:
        if track.error:
            errors[track.error] = errors.get(track.error, 0) + 1
    return Reading(
        streams=len(tracks),
        seconds=end - begin,
        delivered=tokens / asked,
        tokens=tokens,
        writes=sum(begin <= now <= end for track in tracks for now in track.arrivals),
        first_token=Spread.of(firsts),
        gap=Spread.of(gaps),
        late=Spread.of([each for one in late for each in one]),
        worst_stream=max(1000 * percentile(one, 99) for one in late),
        worst_lag=max(1000 * percentile(track.lag(begin, end), 99) for track in tracks),
        never_behind=sum(max(one) <= BEHIND for one in late) / len(late),
        errors=errors,
    )
