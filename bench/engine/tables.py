"""The results as tables. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.engine.baselines import GENERATE
from bench.engine.reading import Reading
from bench.report import Row, Table
from bench.stats import Spread

ENGINE = "engine"
UNIFORM, RAGGED, ARRIVALS = "uniform", "ragged", "arrivals"
_GB = 1e9


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One load on one contender."""

    load: str
    contender: str
    concurrency: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class ArrivalsResult:
    """Newcomers beside streams, in milliseconds."""

    streams: int
    prompt: int  # tokens of a newcomer's
    newcomers: int
    ttft: Spread
    quiet_gap: Spread  # of the streams, that no newcomer touched
    pause: Spread  # of each stream, the longest gap until each newcomer's first token


@dataclass(frozen=True, slots=True)
class Limit:
    """What the memory allows under a load. `context`: tokens a row on average."""

    load: str
    concurrency: int
    context: float
    weights: float  # bytes a step
    kv: float  # bytes a step
    bandwidth: float  # bytes a second

    @property
    def step_ms(self) -> float:
        return 1000 * (self.weights + self.kv) / self.bandwidth

    @property
    def rate(self) -> float:
        return 1000 * self.concurrency / self.step_ms


def load_table(load: str, title: str, results: Sequence[LoadResult]) -> Table:
    rows: list[Row] = []
    for result in sorted(results, key=_order):
        if result.load == load:
            it = result.reading
            rows.append(
                {
                    "contender": result.contender,
                    "concurrency": result.concurrency,
                    "requests": it.requests,
                    "tok/s": it.rate,
                    "ms a step": it.step_ms,
                    **it.ttft.cells("TTFT", "p50", "p99"),
                    **it.gap.cells("gap", "p50", "p99", "max"),
                    "tokens a chunk": it.tokens_a_chunk,
                    "failed": it.failed,
                }
            )
    return Table(title, rows)


def arrivals_table(results: Sequence[ArrivalsResult]) -> Table:
    rows: list[Row] = []
    for it in results:
        rows.append(
            {
                "streams": it.streams,
                "newcomer's prompt": it.prompt,
                "newcomers": it.newcomers,
                **it.ttft.cells("TTFT", "p50", "p99"),
                **it.quiet_gap.cells("gap before", "p50", "p99"),
                **it.pause.cells("pause", "p50", "p99", "max"),
            }
        )
    return Table("a request arrives while others decode, ms", rows)


def limit_table(limits: Sequence[Limit]) -> Table:
    rows: list[Row] = []
    for it in limits:
        rows.append(
            {
                "load": it.load,
                "concurrency": it.concurrency,
                "context": it.context,
                "weights GB": it.weights / _GB,
                "KV GB": it.kv / _GB,
                "GB/s": it.bandwidth / _GB,
                "ms a step": it.step_ms,
                "tok/s": it.rate,
            }
        )
    return Table("the bandwidth's limit", rows)


def ratio_table(results: Sequence[LoadResult], limits: Sequence[Limit]) -> Table:
    """The engine's tokens a second over everyone else's, and over the limit's."""
    contenders = dict.fromkeys(it.contender for it in results if it.contender != ENGINE)
    rates = {(it.load, it.contender, it.concurrency): it.reading.rate for it in results}
    bounds = {(it.load, it.concurrency): it for it in limits}
    rows: list[Row] = []
    for ours in results:
        if ours.contender != ENGINE:
            continue
        it, load, concurrency = ours.reading, ours.load, ours.concurrency
        row: dict[str, object] = {"load": load, "concurrency": concurrency, "tok/s": it.rate}
        for name in contenders:
            theirs = rates.get((load, name, concurrency))
            if theirs is None and name == GENERATE:  # its concurrency is always 1
                theirs = rates.get((load, name, 1)) or rates.get((UNIFORM, name, 1))
            row[f"/ {name}"] = it.rate / theirs if theirs else None
        bound = bounds.get((load, concurrency))
        row["of the limit"] = it.rate / bound.rate if bound else None
        row["step, of the limit"] = bound.step_ms / it.step_ms if bound and it.step_ms else None
        rows.append(row)
    return Table("the engine beside the others, by tok/s", rows)


def _order(result: LoadResult) -> tuple[int, bool]:
    return result.concurrency, result.contender != ENGINE
