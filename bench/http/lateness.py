"""How far streams fall behind their schedule. Pure.

The k-th token (from 1) of a stream sent at `sent` with `rate` tokens a second is due at
`sent + k / rate`: the engine waits that long before each token. So its lateness contains all that
the service adds, the way to the first token included, which no later token can make up for.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.stats import Spread, percentile
from bench.timeline import Timeline, ttfts

LIMIT = 0.250  # seconds; a stream that is later than this stutters


@dataclass(frozen=True, slots=True)
class Delivery:
    """What all streams received in the measured window. Spreads are in milliseconds."""

    streams: int
    seconds: float
    delivered: float  # tokens received / tokens due
    tokens: int
    arrivals: int  # writes that brought them
    ttft: Spread
    gap: Spread
    late: Spread  # over all tokens
    worst_stream_ms: float  # the largest of the streams' own 99th percentiles of lateness
    worst_lag_ms: float  # the same on the schedule that begins with the first token: no TTFT in it
    errors: dict[str, int]

    @property
    def holds(self) -> bool:
        """No stream's 99th percentile of lateness is beyond LIMIT, and none broke."""
        return not self.errors and self.worst_stream_ms <= 1000 * LIMIT


def summarize(timelines: Sequence[Timeline], rate: float, begin: float, end: float) -> Delivery:
    """The window from `begin` to `end`. Raises ValueError without streams."""
    late = [lateness(timeline, timeline.sent, rate, begin, end) for timeline in timelines]
    gaps: list[float] = []
    lags: list[float] = []
    tokens = arrivals = 0
    for timeline in timelines:
        tokens += received(timeline, begin, end)
        arrivals += sum(begin <= at <= end for at in timeline.times)
        gaps += timeline.gaps(begin, end)
        start = timeline.times[0] - 1 / rate if timeline.times else timeline.sent
        lags.append(percentile(lateness(timeline, start, rate, begin, end), 99))
    return Delivery(
        streams=len(timelines),
        seconds=end - begin,
        delivered=tokens / (rate * len(timelines) * (end - begin)),
        tokens=tokens,
        arrivals=arrivals,
        ttft=Spread.of(ttfts(list(timelines)), 1000),
        gap=Spread.of(gaps, 1000),
        late=Spread.of([seconds for stream in late for seconds in stream], 1000),
        worst_stream_ms=1000 * max(percentile(stream, 99) for stream in late),
        worst_lag_ms=1000 * max(lags),
        errors=dict(Counter(timeline.error for timeline in timelines if timeline.error)),
    )


def lateness(
    timeline: Timeline, start: float, rate: float, begin: float, end: float
) -> list[float]:
    """Seconds behind the schedule of each token in the window, and of the one due at its end.

    The latter shows a stream that has stopped, from which nothing arrives.
    """
    late = []
    count = 0  # tokens up to the end of the window
    for at, number in _numbered(timeline):
        if at > end:
            break
        count = number
        if at >= begin:
            late.append(at - start - number / rate)
    return [*late, max(0.0, end - start - (count + 1) / rate)]


def received(timeline: Timeline, begin: float, end: float) -> int:
    """Tokens in the window, both ends included."""
    arrivals = zip(timeline.times, timeline.counts, strict=True)
    return sum(count for at, count in arrivals if begin <= at <= end)


def _numbered(timeline: Timeline) -> Iterator[tuple[float, int]]:
    number = 0
    for at, count in zip(timeline.times, timeline.counts, strict=True):
        for _ in range(count):
            number += 1
            yield at, number
