"""When the tokens of each request came, and what follows from it. Pure."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.stats import percentile


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to make: `prompt` tokens in, `answer` tokens out, `at` seconds after the start (0 in closed loops)."""

    prompt: int
    answer: int
    at: float = 0.0


@dataclass(slots=True)
class Track:
    """One request. Times are those of `time.perf_counter`; an item of `times` and `counts` a chunk with tokens."""

    ask: Ask
    asked: float = 0.0
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    prompt_tokens: int = 0  # as the engine counted them; 0 if it did not say
    error: str = ""

    def took(self, at: float, tokens: int) -> None:
        """So many tokens came together."""
        self.times.append(at)
        self.counts.append(tokens)

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(self.counts)

    def within(self, begin: float, end: float) -> int:
        """Tokens after `begin`, until `end`."""
        first, last = bisect.bisect_right(self.times, begin), bisect.bisect_right(self.times, end)
        return sum(self.counts[first:last])

    def gaps(self) -> list[float]:
        """Seconds between two chunks that followed each other."""
        return [after - before for before, after in pairwise(self.times)]

    def largest_gap(self, begin: float, end: float) -> float:
        """The longest of the gaps that have a part between `begin` and `end`; 0.0 for none."""
        pairs = pairwise(self.times)
        return max(
            (after - before for before, after in pairs if after > begin and before < end),
            default=0.0,
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a series, in its unit."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None for no values."""
        return cls(percentile(values, 50), percentile(values, 99), max(values)) if values else None


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of one load. `rate`: tokens a second over the whole of it, prompts' reading included; `step_ms`: a
    decoding step while all rows run (all-at-once loads only); times in milliseconds.
    """

    requests: int
    failed: int
    tokens: int
    seconds: float
    rate: float
    step_ms: float | None
    ttft: Spread | None
    gap: Spread | None
    tokens_a_chunk: float

    @property
    def complete(self) -> bool:
        """Nothing failed."""
        return not self.failed


def read_wave(tracks: Sequence[Track]) -> Reading:
    """Of requests that were all made at once: from the first one's start to the last token."""
    end = max((track.times[-1] for track in tracks if track.times), default=0.0)
    return _read(tracks, min(track.asked for track in tracks), end, step_ms(tracks))


def read_loop(tracks: Sequence[Track]) -> Reading:
    """Of a closed loop: from its start to the moment when the last request was made, after which rows run empty."""
    asked = [track.asked for track in tracks]
    return _read(tracks, min(asked), max(asked), None)


def read_until_last(tracks: Sequence[Track]) -> Reading:
    """Of any load: from its start to the last token."""
    return _read(tracks, min(track.asked for track in tracks), _last(tracks), None)


def step_ms(tracks: Sequence[Track]) -> float | None:
    """A step's milliseconds while every request had begun to be answered and none had ended; None if never."""
    good = [track for track in tracks if track.times and not track.error]
    if not good or len(good) < len(tracks):
        return None
    begin, end = max(track.times[0] for track in good), min(track.times[-1] for track in good)
    steps = sum(track.within(begin, end) for track in good) / len(good)
    return 1000 * (end - begin) / steps if end > begin and steps >= 2 else None


def pauses(running: Sequence[Track], newcomers: Sequence[Track]) -> list[float]:
    """For each running stream and each newcomer: the longest gap that has a part between the newcomer's request and
    its first token, in milliseconds. That is what its reader saw of the newcomer's prompt being read.
    """
    spans = [(track.asked, track.times[0]) for track in newcomers if track.times]
    found = [track.largest_gap(begin, end) for begin, end in spans for track in running]
    return [1000 * gap for gap in found if gap]


def quiet_gaps(running: Sequence[Track], newcomers: Sequence[Track]) -> list[float]:
    """Gaps of the running streams, in milliseconds, that no newcomer touched."""
    spans = [(track.asked, track.times[0] if track.times else float("inf")) for track in newcomers]
    pairs = [pair for track in running for pair in pairwise(track.times)]
    quiet = [
        pair for pair in pairs if not any(pair[1] > begin and pair[0] < end for begin, end in spans)
    ]
    return [1000 * (after - before) for before, after in quiet]


def mean_context(asks: Sequence[Ask]) -> float:
    """Tokens that a row holds on average while it decodes: long answers decode longer."""
    steps = sum(ask.answer for ask in asks)
    return sum(ask.answer * (ask.prompt + ask.answer / 2) for ask in asks) / steps


def _read(tracks: Sequence[Track], begin: float, end: float, step: float | None) -> Reading:
    if end <= begin:  # one request at a time and no second one, or nothing came
        end = _last(tracks)
    seconds = max(0.0, end - begin)
    tokens = sum(track.within(begin, end) for track in tracks)
    ttft = [1000 * (track.times[0] - track.asked) for track in tracks if track.times]
    chunks = sum(len(track.times) for track in tracks)
    return Reading(
        requests=len(tracks),
        failed=sum(bool(track.error) for track in tracks),
        tokens=tokens,
        seconds=seconds,
        rate=tokens / seconds if seconds else 0.0,
        step_ms=step,
        ttft=Spread.of(ttft),
        gap=Spread.of([1000 * gap for track in tracks for gap in track.gaps()]),
        tokens_a_chunk=sum(track.tokens for track in tracks) / chunks if chunks else 0.0,
    )


def _last(tracks: Sequence[Track]) -> float:
    return max((track.times[-1] for track in tracks if track.times), default=0.0)
