"""When the tokens of one streamed answer arrived. Pure."""

import bisect
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True)
class Timeline:
    """One request. Moments are those of `time.perf_counter`.

    `times` and `counts` have an item per arrival: the moment, and how many tokens it brought.
    """

    sent: float = 0.0
    accepted: float | None = None  # when the response began: the job is in the broker
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    ended: float | None = None
    error: str = ""

    def add(self, at: float, tokens: int) -> None:
        self.times.append(at)
        self.counts.append(tokens)

    @property
    def first(self) -> float | None:
        return self.times[0] if self.times else None

    @property
    def ttft(self) -> float | None:
        """Seconds from the request to its first token."""
        return self.times[0] - self.sent if self.times else None

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    def tokens_within(self, begin: float, end: float) -> int:
        """Tokens that arrived after `begin`, up to `end`."""
        first = bisect.bisect_right(self.times, begin)
        last = bisect.bisect_right(self.times, end)
        return sum(self.counts[first:last])

    def gaps(self, begin: float = float("-inf"), end: float = float("inf")) -> list[float]:
        """Seconds between neighbouring arrivals, both within the window."""
        pairs = pairwise(self.times)
        return [after - before for before, after in pairs if before >= begin and after <= end]


def ttfts(timelines: list[Timeline]) -> list[float]:
    """Times to first token, in seconds, of the requests that have one."""
    return [timeline.times[0] - timeline.sent for timeline in timelines if timeline.times]


def first_errors(timelines: list[Timeline], most: int = 3) -> list[str]:
    return sorted({timeline.error for timeline in timelines if timeline.error})[:most]
