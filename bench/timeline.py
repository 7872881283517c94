"""When the tokens of one streamed answer arrived. Pure."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True)
class Timeline:
    """One request. Each arrival has its time.perf_counter in `times`, its tokens in `counts`."""

    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    ended: float | None = None
    error: str = ""

    def add(self, at: float, tokens: int) -> None:
        self.times.append(at)
        self.counts.append(tokens)

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


def ttfts(timelines: Sequence[Timeline]) -> list[float]:
    """Times to first token, in seconds, of the requests that have one."""
    return [timeline.times[0] - timeline.sent for timeline in timelines if timeline.times]


def first_errors(timelines: Sequence[Timeline], most: int = 3) -> list[str]:
    return sorted({timeline.error for timeline in timelines if timeline.error})[:most]
