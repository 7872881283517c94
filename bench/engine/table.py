"""What was found, as tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.engine.reading import Reading, Spread
from bench.report import Rows

ENGINE = "engine"
ONE_BY_ONE, CONTINUOUS = "generate", "continuous"
UNIFORM, RAGGED, ARRIVALS = "uniform", "ragged", "arrivals"
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Found:
    """One load on one contender. `kind`: UNIFORM or RAGGED; `at_once`: requests at the same time."""

    kind: str
    who: str
    at_once: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class Disturbed:
    """Newcomers beside running streams, all in milliseconds. `quiet`: gaps of the streams that no newcomer touched;
    `pause`: of each stream and newcomer the longest gap until the newcomer's first token.
    """

    who: str
    running: int
    arriving: int  # tokens of a newcomer's prompt
    newcomers: int
    ttft: Spread | None
    quiet: Spread | None
    pause: Spread | None


@dataclass(frozen=True, slots=True)
class Bound:
    """What the memory allows. `context`: tokens a row on average."""

    kind: str
    at_once: int
    context: float
    weights: float  # bytes a step
    kv: float  # bytes a step
    bandwidth: float  # bytes a second

    @property
    def step_ms(self) -> float:
        """The shortest step."""
        return 1000 * (self.weights + self.kv) / self.bandwidth

    @property
    def rate(self) -> float:
        """The most tokens a second."""
        return 1000 * self.at_once / self.step_ms


def loads(kind: str, title: str, found: Sequence[Found]) -> Rows:
    """A row a contender and number of requests."""
    columns = (
        "who", "at once", "requests", "tok/s", "ms a step", "TTFT p50", "TTFT p99", "gap p50", "gap p99", "gap max",
        "tokens a chunk", "failed",
    )  # fmt: skip
    rows = []
    for each in sorted(
        (each for each in found if each.kind == kind),
        key=lambda each: (each.at_once, each.who != ENGINE),
    ):
        it = each.reading
        ttft, gap = _three(it.ttft), _three(it.gap)
        rows.append(
            (
                each.who,
                each.at_once,
                it.requests,
                it.rate,
                it.step_ms,
                *ttft[:2],
                *gap,
                it.tokens_a_chunk,
                it.failed,
            )
        )
    return Rows(title, columns, rows)


def disturbances(found: Sequence[Disturbed]) -> Rows:
    """A row a number of running streams and length of the newcomers' prompts."""
    columns = (
        "who", "running", "newcomer's prompt", "newcomers", "TTFT p50", "TTFT p99", "gap before p50", "gap before p99",
        "pause p50", "pause p99", "pause max",
    )  # fmt: skip
    rows = [
        (each.who, each.running, each.arriving, each.newcomers, *_three(each.ttft)[:2], *_three(each.quiet)[:2],
         *_three(each.pause))
        for each in found
    ]  # fmt: skip
    return Rows("a request arrives while others decode, ms", columns, rows)


def bounds(found: Sequence[Bound]) -> Rows:
    """A row a load and number of requests."""
    columns = ("load", "at once", "context", "weights GB", "KV GB", "GB/s", "ms a step", "tok/s")
    rows = [
        (each.kind, each.at_once, each.context, each.weights / _GB, each.kv / _GB, each.bandwidth / _GB, each.step_ms,
         each.rate)
        for each in found
    ]  # fmt: skip
    return Rows("the bandwidth's limit", columns, rows)


def ratios(found: Sequence[Found], limits: Sequence[Bound]) -> Rows:
    """The engine's tokens a second over everyone else's, and over the limit's."""
    others = list(dict.fromkeys(each.who for each in found if each.who != ENGINE))
    rows: list[tuple[str | int | float | None, ...]] = []
    for ours in (each for each in found if each.who == ENGINE):
        shares = [_over(ours.reading.rate, _rate(found, ours, who)) for who in others]
        bound = next(
            (each for each in limits if (each.kind, each.at_once) == (ours.kind, ours.at_once)),
            None,
        )
        step = ours.reading.step_ms
        rows.append(
            (ours.kind, ours.at_once, ours.reading.rate, *shares,
             ours.reading.rate / bound.rate if bound else None,
             bound.step_ms / step if bound and step else None)
        )  # fmt: skip
    columns = (
        "load",
        "at once",
        "engine tok/s",
        *(f"/ {who}" for who in others),
        "of the limit",
        "its step, of the limit",
    )
    return Rows("the engine beside the others, by tok/s", columns, rows)


def _rate(found: Sequence[Found], ours: Found, who: str) -> float | None:
    """Of `who` under the same load; of one that runs one request at a time, under any."""
    theirs = [each for each in found if each.who == who]
    same = [each for each in theirs if (each.kind, each.at_once) == (ours.kind, ours.at_once)]
    if not same and who == ONE_BY_ONE:
        same = [each for each in theirs if each.kind == ours.kind] or theirs
    return same[0].reading.rate if same else None


def _over(ours: float, theirs: float | None) -> float | None:
    return ours / theirs if theirs else None


def _three(spread: Spread | None) -> tuple[float | None, float | None, float | None]:
    return (spread.p50, spread.p99, spread.max) if spread else (None, None, None)
