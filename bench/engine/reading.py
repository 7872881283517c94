"""Rates and delays from the timelines of a load, and their table. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.report import Row, Table
from bench.stats import Spread, Timeline, first_errors, ttfts

ENGINE, GENERATE, LIMIT = "engine", "generate", "limit"
_NO_SAMPLES = Spread()


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of one load. Spreads are in milliseconds."""

    rate: float | None = None  # tokens of answers a second over the whole of it, prefill included
    step_ms: float | None = None  # a decoding step while all requests run
    host: float | None = None  # processor time of the thread that queues steps, % of the time then
    prompt_rate: float | None = None  # tokens of prompts a second, until the last first token
    failed: int | None = None
    errors: tuple[str, ...] = ()  # the first few
    ttft: Spread = _NO_SAMPLES
    gap: Spread = _NO_SAMPLES

    def cells(self) -> dict[str, float | None]:
        """Its part of a table's row."""
        return {
            "tok/s": self.rate,
            "ms a step": self.step_ms,
            "host %": self.host,
            "prompt tok/s": self.prompt_rate,
            **self.ttft.cells("TTFT", "p50", "p99"),
            **self.gap.cells("gap", "p50", "p99", "max"),
            "failed": self.failed,
        }


def read(
    timelines: Sequence[Timeline],
    prompt_tokens: int = 0,
    host: Sequence[tuple[float, float]] = (),
) -> Reading:
    """From the first request to the last token. `prompt_tokens`: of all requests. `host`: times,
    and the processor time of the thread that queues steps. Answers that came as a whole have no
    delays.
    """
    begin = min(timeline.sent for timeline in timelines)
    arrivals = [timeline for timeline in timelines if timeline.times]
    end = max((timeline.times[-1] for timeline in arrivals), default=begin)
    total = sum(timeline.tokens for timeline in timelines)
    failed, errors = _failures(timelines)
    whole = Reading(_rate(total, end - begin), failed=failed, errors=errors)
    if all(len(timeline.times) <= 1 for timeline in timelines):
        return whole
    last_first = max(timeline.times[0] for timeline in arrivals)
    gaps: list[float] = []
    for timeline in arrivals:
        gaps += timeline.gaps()
    return replace(
        whole,
        step_ms=step_ms(timelines),
        host=_host_share(timelines, host),
        prompt_rate=_rate(prompt_tokens, last_first - begin),
        ttft=Spread.of(ttfts(timelines), 1000),
        gap=Spread.of(gaps, 1000),
    )


def read_arrivals(streams: Sequence[Timeline], newcomers: Sequence[Timeline]) -> Reading:
    """TTFT of newcomers that came once all streams decoded, and the streams' gaps meanwhile."""
    begin = max((stream.times[0] for stream in streams if stream.times), default=0.0)
    late = [newcomer for newcomer in newcomers if newcomer.sent >= begin]
    end = max((newcomer.times[0] for newcomer in late if newcomer.times), default=begin)
    gaps: list[float] = []
    for stream in streams:
        gaps += stream.gaps(begin, end)
    failed, errors = _failures([*streams, *newcomers])
    ttft, gap = Spread.of(ttfts(late), 1000), Spread.of(gaps, 1000)
    return Reading(failed=failed, errors=errors, ttft=ttft, gap=gap)


def step_ms(timelines: Sequence[Timeline]) -> float | None:
    """Milliseconds a step while all requests decode; None if they never all do."""
    begin, end = _steady(timelines)
    tokens = sum(timeline.tokens_within(begin, end) for timeline in timelines)
    steps = tokens / len(timelines)
    if end <= begin or steps < 2:
        return None
    return 1000 * (end - begin) / steps


def _steady(timelines: Sequence[Timeline]) -> tuple[float, float]:
    """Between which moments all requests decode."""
    if any(timeline.error or not timeline.times for timeline in timelines):
        return 0.0, 0.0
    begin = max(timeline.times[0] for timeline in timelines)
    return begin, min(timeline.times[-1] for timeline in timelines)


def _host_share(timelines: Sequence[Timeline], host: Sequence[tuple[float, float]]) -> float | None:
    """Processor seconds a second while all requests decode, in %."""
    begin, end = _steady(timelines)
    within = [sample for sample in host if begin <= sample[0] <= end]
    if len(within) < 2:
        return None
    (first, before), (last, after) = within[0], within[-1]
    return 100 * (after - before) / (last - first)


def _failures(timelines: Sequence[Timeline]) -> tuple[int, tuple[str, ...]]:
    """How many, and the first errors."""
    failed = sum(bool(timeline.error) for timeline in timelines)
    return failed, tuple(first_errors(timelines))


def _rate(tokens: int, seconds: float) -> float | None:
    """None without tokens or time."""
    if not tokens or seconds <= 0:
        return None
    return tokens / seconds


@dataclass(frozen=True, slots=True)
class Result:
    """One load on one contender."""

    load: str
    size: int  # requests at once; of the system, for each node
    contender: str
    reading: Reading
    nodes: int = 1
    cores: str = ""  # processor seconds a second of the system's processes


def result_table(results: Sequence[Result]) -> Table:
    """By load and size, all in the order in which they were measured."""
    order = list(dict.fromkeys(it.load for it in results))
    engine = {(it.load, it.size): it.reading for it in results if it.contender == ENGINE}
    rows: list[Row] = []
    for result in sorted(results, key=lambda it: (order.index(it.load), it.size)):
        row: dict[str, object] = {"load": result.load, "at once": result.size}
        row["contender"] = result.contender
        row["engine / it"] = _ratio(engine.get((result.load, result.size)), result)
        row |= result.reading.cells()
        if result.cores:
            row["cores"] = result.cores
        rows.append(row)
    return Table("speed; times in ms", rows)


def _ratio(engine: Reading | None, result: Result) -> float | None:
    """How many times as fast an engine a node is; by steps if nothing else is known of `result`."""
    it = result.reading
    if engine is None or engine is it:
        return None
    if engine.rate and it.rate:
        return result.nodes * engine.rate / it.rate
    if engine.step_ms and it.step_ms:
        return it.step_ms / engine.step_ms
    return None
