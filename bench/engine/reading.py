"""Rates and delays from the timelines of a load. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.engine.load import Arrivals, Ask
from bench.stats import Spread
from bench.timeline import Timeline, ttfts


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of one load. Spreads are in milliseconds."""

    requests: int
    failed: int
    tokens: int
    seconds: float
    rate: float  # tokens a second over the whole of it, prefill included
    step_ms: float | None  # a decoding step while all rows run
    ttft: Spread
    gap: Spread
    tokens_a_chunk: float


def read(timelines: Sequence[Timeline], *, steady: bool = False) -> Reading:
    """From the first request to the last token; `steady`: to the beginning of the last request.

    After that, slots of a closed loop stay empty.
    """
    begin = min(timeline.sent for timeline in timelines)
    last_token = max((timeline.times[-1] for timeline in timelines if timeline.times), default=0.0)
    last_sent = max(timeline.sent for timeline in timelines)
    end = last_sent if steady and last_sent > begin else last_token
    seconds = max(0.0, end - begin)
    tokens = sum(timeline.tokens_within(begin, end) for timeline in timelines)
    chunks = sum(len(timeline.times) for timeline in timelines)
    return Reading(
        requests=len(timelines),
        failed=sum(bool(timeline.error) for timeline in timelines),
        tokens=tokens,
        seconds=seconds,
        rate=tokens / seconds if seconds else 0.0,
        step_ms=None if steady else step_ms(timelines),
        ttft=Spread.of(ttfts(list(timelines)), 1000),
        gap=Spread.of([gap for timeline in timelines for gap in timeline.gaps()], 1000),
        tokens_a_chunk=sum(timeline.tokens for timeline in timelines) / max(1, chunks),
    )


def step_ms(timelines: Sequence[Timeline]) -> float | None:
    """Milliseconds a step while all requests decode; None if they never all do."""
    if not timelines or any(timeline.error or not timeline.times for timeline in timelines):
        return None
    begin = max(timeline.times[0] for timeline in timelines)
    end = min(timeline.times[-1] for timeline in timelines)
    tokens = sum(timeline.tokens_within(begin, end) for timeline in timelines)
    steps = tokens / len(timelines)
    return 1000 * (end - begin) / steps if end > begin and steps >= 2 else None


def pauses(arrivals: Arrivals) -> list[float]:
    """For each newcomer and stream: the longest gap until the newcomer's first token, in seconds.

    That is what the stream's reader saw of the newcomer's prefill.
    """
    longest = []
    for newcomer in arrivals.newcomers:
        if newcomer.first is None:
            continue
        for stream in arrivals.streams:
            gaps = []
            for before, after in pairwise(stream.times):
                if after > newcomer.sent and before < newcomer.first:
                    gaps.append(after - before)
            if gaps:
                longest.append(max(gaps))
    return longest


def quiet_gaps(arrivals: Arrivals) -> list[float]:
    """Gaps of the streams, in seconds, that no newcomer touched."""
    spans = [(newcomer.sent, newcomer.first or float("inf")) for newcomer in arrivals.newcomers]
    gaps = []
    for stream in arrivals.streams:
        for before, after in pairwise(stream.times):
            if not any(after > sent and before < first for sent, first in spans):
                gaps.append(after - before)
    return gaps


def mean_context(asks: Sequence[Ask]) -> float:
    """Tokens that a row holds on average while it decodes: long answers decode longer."""
    steps = sum(ask.answer for ask in asks)
    return sum(ask.answer * (ask.prompt + ask.answer / 2) for ask in asks) / steps
