"""What was found, as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.dispatch.contenders import BARE, CANOPY, CELERY, DRAMATIQ, Contender
from bench.report import Report, Rows
from bench.stats import Summary, ratio_by_round

GROUPS = ("driver", "workers", "broker")
_HOPS = 2  # the fewest that a tree with a root and nodes has: there the goals are set
_POLICY = "hold-high"


@dataclass(frozen=True)
class Cell:
    """One block of one contender under one load. `cpu`: seconds by group of processes."""

    seconds: float
    latencies_ms: list[float]
    cpu: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return len(self.latencies_ms) / self.seconds

    @property
    def cores(self) -> float:
        """Cores kept busy, everybody together."""
        return sum(self.cpu.values()) / self.seconds

    def per_job(self, group: str) -> float:
        """Milliseconds of processor time."""
        return self.cpu[group] * 1000 / len(self.latencies_ms)


Found = dict[tuple[str, int], list[Cell]]  # contender and requests under way -> a cell a round


def tell(result: Report, chosen: Sequence[Contender], found: Found) -> None:
    """Adds the tables, the notes and, for machines, every round to the report."""
    loads = list(dict.fromkeys(load for _, load in found))
    result.tables += [_settings(chosen)]
    result.tables += [_load(chosen, found, load) for load in loads]
    result.tables += [
        _processor(chosen, found, load) for load in loads if load > 1 or len(loads) == 1
    ]
    result.tables += [_goals(chosen, found, loads)]
    result.facts["rounds"] = [
        {
            "contender": name,
            "in_flight": load,
            "jobs_per_second": [round(cell.rate, 1) for cell in cells],
            "p50_ms": [round(median(cell.latencies_ms), 3) for cell in cells],
            "cpu_ms_per_job": {
                group: [round(cell.per_job(group), 4) for cell in cells] for group in GROUPS
            },
        }
        for (name, load), cells in found.items()
    ]
    result.notes += [
        "hops: queues that a job passes on its way down. Canopy's usual least is 2 (root, node); of 1 it is a root "
        "that has the engine itself. The other job queues have 1 by nature and are compared with Canopy's 2.",
        "jobs/s: median of the rounds. share: of bare AMQP's of as many hops, by round; of the peers' 1 hop, too.",
        "Canopy and bare AMQP confirm every hop; FastStream confirms its publishes; Celery and dramatiq confirm "
        "nothing unless told so: a job may be lost with the broker's connection and nobody told.",
        "dramatiq has no results on RabbitMQ: a result backend of 4 lines publishes each to the driver's reply queue.",
        "dramatiq's sending blocks, so at high loads its jobs are answered before so many are under way: read its "
        "throughput there, not its latency.",
        "bare AMQP is pika as it comes: a system call a frame and an acknowledgement a delivery. Canopy joins both, so "
        "its broker works less a job, and at some loads the whole path does.",
        "FastStream's broker.request has one request under way at a time, whatever is asked of it.",
        "cores: kept busy by driver, workers and broker together. Where they are all the machine has, the processor is "
        "the bound, and the throughput follows from the processor time a job.",
    ]


def _settings(chosen: Sequence[Contender]) -> Rows:
    rows = [
        (each.name, each.hops, len(each.workers) or each.hops, each.settings) for each in chosen
    ]
    return Rows("who is measured", ("contender", "hops", "processes", "settings"), rows)


def _load(chosen: Sequence[Contender], found: Found, load: int) -> Rows:
    rows = []
    for each in chosen:
        cells = found[each.name, load]
        summary = Summary.of([cell.latencies_ms for cell in cells])
        limit = found.get((_named(chosen, BARE, each.hops), load))
        rows.append(
            (
                each.name,
                round(median(cell.rate for cell in cells)),
                by_round(_rate, cells, limit) if limit else None,
                summary.p50,
                summary.p95,
                summary.p99,
                by_round(_latency, cells, limit) if limit else None,
                median(cell.cores for cell in cells),
                summary.count,
            )
        )
    columns = (
        "contender",
        "jobs/s",
        "share",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "x bare p50",
        "cores",
        "jobs",
    )
    return Rows(f"{load} in flight", columns, rows)


def _processor(chosen: Sequence[Contender], found: Found, load: int) -> Rows:
    rows = []
    for each in chosen:
        spent = [median(cell.per_job(group) for cell in found[each.name, load]) for group in GROUPS]
        rows.append((each.name, *spent, sum(spent)))
    return Rows(
        f"processor time, ms a job, {load} in flight", ("contender", *GROUPS, "all"), rows, digits=3
    )


def _goals(chosen: Sequence[Contender], found: Found, loads: Sequence[int]) -> Rows:
    """The goals, each against the best of its kind. What was not measured has no row."""
    canopy = next(
        (each.name for each in chosen if each.name.startswith(f"{CANOPY} {_POLICY}, {_HOPS}")), None
    )
    bare = _named(chosen, BARE, _HOPS)
    rows: list[tuple[str, str, float, str]] = []
    if canopy is None:
        return Rows("goals", ("goal", "wanted", "found", "met"), rows)
    for label, names, wanted in _rivals(chosen):
        if names:
            ratio = median(
                a / b
                for a, b in zip(
                    _best(found, [canopy], loads), _best(found, names, loads), strict=True
                )
            )
            rows.append(
                (
                    f"throughput, {_HOPS} hops, x {label}",
                    f">= {wanted:g}",
                    ratio,
                    _met(ratio >= wanted),
                )
            )
    if (bare, loads[0]) in found:
        ratio = median(
            a / b
            for a, b in zip(_best(found, [canopy], loads), _best(found, [bare], loads), strict=True)
        )
        rows.append(
            (f"throughput, {_HOPS} hops, share of {BARE}", ">= 0.5", ratio, _met(ratio >= 0.5))
        )
    if (bare, 1) in found:
        ratio = by_round(_latency, found[canopy, 1], found[bare, 1])
        rows.append(
            (f"p50, {_HOPS} hops, 1 in flight, x {BARE}", "<= 1.5", ratio, _met(ratio <= 1.5))
        )
    return Rows(
        "goals (throughput: each one's best load)", ("goal", "wanted", "found", "met"), rows
    )


def _rivals(chosen: Sequence[Contender]) -> list[tuple[str, list[str], float]]:
    """Whom the goals name, who of them was measured, and how many times their throughput is wanted."""
    celery = [each.name for each in chosen if each.family == CELERY]
    dramatiq = [each.name for each in chosen if each.family == DRAMATIQ]
    confirmed = [each.name for each in chosen if each.family == DRAMATIQ and each.confirmed]
    return [
        (f"the best {CELERY}", celery, 5.0),
        (f"the best {DRAMATIQ}", dramatiq, 2.0),
        (f"{DRAMATIQ} that confirms, too", confirmed, 2.0),
    ]


def by_round(
    value: Callable[[Cell], Sequence[float]], cells: Sequence[Cell], limit: Sequence[Cell]
) -> float:
    """The median over the rounds of the ratio within a round."""
    return ratio_by_round([value(cell) for cell in cells], [value(cell) for cell in limit])


def _best(found: Found, names: Sequence[str], loads: Sequence[int]) -> list[float]:
    """By round, the highest throughput of any of `names` under any load."""
    series = [[cell.rate for cell in found[name, load]] for name in names for load in loads]
    return [max(of_round) for of_round in zip(*series, strict=True)]


def _rate(cell: Cell) -> list[float]:
    return [cell.rate]


def _latency(cell: Cell) -> list[float]:
    return cell.latencies_ms


def _named(chosen: Sequence[Contender], family: str, hops: int) -> str:
    return next((each.name for each in chosen if each.family == family and each.hops == hops), "")


def _met(met: bool) -> str:
    return "yes" if met else "no"
