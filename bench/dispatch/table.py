"""The results as tables. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.dispatch.contenders import BARE, CANOPY, CELERY, DRAMATIQ, Contender
from bench.report import Row, Table
from bench.stats import Spread, ratio_by_round

GROUPS = ("driver", "workers", "broker")
GOAL_HOPS = 2  # the fewest that a tree with a root and nodes has
GOAL_NAME = f"{CANOPY} hold-high, {GOAL_HOPS} hops"


@dataclass(frozen=True)
class Measurement:
    """One block of one contender. `cpu`: processor seconds by group."""

    seconds: float
    latencies_ms: list[float]
    cpu: Mapping[str, float]

    @property
    def rate(self) -> float:
        return len(self.latencies_ms) / self.seconds

    def cpu_ms(self, group: str) -> float:
        return self.cpu[group] * 1000 / len(self.latencies_ms)


# (contender's name, requests in flight) -> a measurement per round
Measurements = dict[tuple[str, int], list[Measurement]]


def load_table(contenders: Sequence[Contender], measured: Measurements, in_flight: int) -> Table:
    rows: list[Row] = []
    for contender in contenders:
        rounds = measured[contender.name, in_flight]
        bare = measured.get((f"{BARE}, {contender.hops} hops", in_flight))
        latencies = [latency for it in rounds for latency in it.latencies_ms]
        cpu_ms = {group: median(it.cpu_ms(group) for it in rounds) for group in GROUPS}
        rows.append(
            {
                "contender": contender.name,
                "jobs/s": round(median(it.rate for it in rounds)),
                "of bare": _ratio(_rate, rounds, bare),
                **Spread.of(latencies).cells("ms", "p50", "p95", "p99"),
                "x bare p50": _ratio(_latencies, rounds, bare),
                **{f"{group} ms": milliseconds for group, milliseconds in cpu_ms.items()},
                "cpu ms": sum(cpu_ms.values()),
            }
        )
    return Table(f"{in_flight} in flight; processor time is a job's", rows)


def goal_table(contenders: Sequence[Contender], measured: Measurements) -> Table:
    """Each goal against the best of its kind. What was not measured has no row."""
    rows: list[Row] = []
    bare = f"{BARE}, {GOAL_HOPS} hops"
    loads = list(dict.fromkeys(in_flight for _, in_flight in measured))
    if (GOAL_NAME, loads[0]) not in measured:
        return Table("goals", rows)
    ours = best_rates(measured, [GOAL_NAME], loads)
    goals = {f"the best {CELERY}": 5.0, f"the best {DRAMATIQ}": 2.0, BARE: 0.5}
    for rival, goal in goals.items():
        names = [it.name for it in contenders if rival.endswith(it.family)]
        if rival == BARE:
            names = [name for name in names if name == bare]
        if names:
            theirs = best_rates(measured, names, loads)
            ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
            rows.append(_goal(f"throughput / {rival}", f">= {goal:g}", ratio, ratio >= goal))
    if (bare, 1) in measured:
        ratio = ratio_by_round(
            [it.latencies_ms for it in measured[GOAL_NAME, 1]],
            [it.latencies_ms for it in measured[bare, 1]],
        )
        rows.append(_goal(f"p50, 1 in flight / {BARE}", "<= 1.5", ratio, ratio <= 1.5))
    return Table(f"goals of {GOAL_NAME} (throughput: each one's best load)", rows)


def best_rates(measured: Measurements, names: Sequence[str], loads: Sequence[int]) -> list[float]:
    """By round, the highest throughput of any of `names` under any load."""
    series = [[it.rate for it in measured[name, load]] for name in names for load in loads]
    return [max(one_round) for one_round in zip(*series, strict=True)]


def _goal(goal: str, target: str, ratio: float, met: bool) -> Row:
    return {"goal": goal, "target": target, "measured": ratio, "met": "yes" if met else "no"}


def _ratio(
    value: Callable[[Measurement], Sequence[float]],
    rounds: Sequence[Measurement],
    bare: Sequence[Measurement] | None,
) -> float | None:
    if bare is None:
        return None
    return ratio_by_round([value(it) for it in rounds], [value(it) for it in bare])


def _rate(measurement: Measurement) -> Sequence[float]:
    return [measurement.rate]


def _latencies(measurement: Measurement) -> Sequence[float]:
    return measurement.latencies_ms
