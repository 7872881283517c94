"""What is printed of the simulations."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from bench.policy.grid import Cell, Result
from bench.policy.simulation import theory
from bench.policy.simulation.simulate import CENTRAL, Plan
from bench.report import Rows

SATURATED = (
    0.995  # utilisation of the busiest place beyond which figures depend on how long the run was
)
GOAL = "hold-high"
GOAL_LOAD = 0.9
GOAL_MEAN, GOAL_P99 = 1.10, 1.25

Results = dict[tuple[str, float, str], Result]  # law, load, discipline


def keyed(cells: Sequence[Cell], results: Sequence[Result]) -> Results:
    """The results by law, load and discipline."""
    return {
        (cell.law, cell.load, cell.discipline): each
        for cell, each in zip(cells, results, strict=True)
    }


def saturated(result: Result) -> bool:
    """Whether some place is busy nearly all the time, so that its backlog hardly ever ends."""
    return result.figures.busiest > SATURATED


def of_law(law: str, results: Results) -> Rows:
    """Mean and p99 of every discipline at every load."""
    loads, disciplines = _axes(law, results)
    rows = [
        (discipline, *(_pair(results[law, load, discipline]) for load in loads)) for discipline in disciplines
    ]  # fmt: skip
    title = f"{law}: time in system, mean / p99, in service times"
    return Rows(title, ("discipline", *(f"load {load:g}" for load in loads)), rows)


def details(law: str, load: float, results: Results) -> Rows:
    """Everything of the disciplines at one load."""
    rows = []
    for discipline in _axes(law, results)[1]:
        result = results[law, load, discipline]
        figures, shares = result.figures, result.figures.backlog_share
        where = " ".join(
            f"{place} {share:.0%}" for place, share in shares.items() if share >= 0.005
        )
        spread, waits = figures.in_system, figures.waiting
        rows.append(
            (discipline, spread.mean, result.error, spread.p50, spread.p95, spread.p99, waits.mean, waits.p99,
             figures.utilisation, figures.busiest, figures.largest_backlog, where)
        )  # fmt: skip
    columns = (
        "discipline",
        "mean",
        "±",
        "p50",
        "p95",
        "p99",
        "wait",
        "its p99",
        "used",
        "busiest",
        "backlog",
        "at",
    )
    return Rows(f"{law}, load {load:g}, in service times", columns, rows)


def ratios(results: Results, discipline: str = GOAL) -> Rows:
    """How many times the central queue's mean and p99, by law and load."""
    found: list[tuple[str | float, ...]] = []
    for law in dict.fromkeys(law for law, _, _ in results):
        loads = _axes(law, results)[0]
        pairs = [ratio(law, load, results, discipline) for load in loads]
        found += [
            (f"{law}, mean", *(mean for mean, _ in pairs)),
            (f"{law}, p99", *(p99 for _, p99 in pairs)),
        ]
    loads = sorted({load for _, load, _ in results})
    return Rows(
        f"{discipline} / {CENTRAL}", ("law", *(f"load {load:g}" for load in loads)), found, digits=3
    )


def ratio(law: str, load: float, results: Results, discipline: str = GOAL) -> tuple[float, float]:
    """Mean and p99 of that discipline over those of the central queue."""
    ours, best = (results[law, load, name].figures.in_system for name in (discipline, CENTRAL))
    return ours.mean / best.mean, ours.p99 / best.p99


def staleness(cells: Sequence[Cell], results: Sequence[Result], best: Result) -> Rows:
    """What late news cost: `cells` differ in their delays alone."""
    least = best.figures.in_system
    rows = [
        (cell.delays.hop, cell.delays.report, each.figures.in_system.mean / least.mean,
         each.figures.in_system.p99 / least.p99, each.figures.backlog_share.get("root", 0.0))
        for cell, each in zip(cells, results, strict=True)
    ]  # fmt: skip
    columns = (
        "hop",
        "report at most every",
        f"mean / {CENTRAL}",
        f"p99 / {CENTRAL}",
        "backlog at the root",
    )
    title = f"{cells[0].discipline} and late news: {cells[0].law}, load {cells[0].load:g}; delays in service times"
    return Rows(title, columns, rows, digits=3)


def against_theory(law: str, plan: Plan, results: Results) -> Rows:
    """Simulated means beside exact ones, which are known for Poisson arrivals and exponential service alone."""
    exact: dict[str, Callable[[float], float]] = {
        CENTRAL: partial(theory.central_queue_mean, plan.capacity)
    }
    if plan == Plan.of(7, fanout=2):
        exact["paper"] = theory.paper_mean
    rows = []
    for load in _axes(law, results)[0]:
        found = [(results[law, load, name], mean(load)) for name, mean in exact.items()]
        rows.append(
            (
                load,
                *(
                    cell
                    for each, mean in found
                    for cell in (each.figures.in_system.mean, each.error, mean)
                ),
            )
        )
    columns = (
        "load",
        *(column for name in exact for column in (name, f"{name} ±", f"{name}, exact")),
    )
    return Rows("mean time in system against theory", columns, rows)


def records(cells: Sequence[Cell], results: Sequence[Result]) -> list[dict[str, object]]:
    """Everything, for JSON."""
    return [
        {
            "law": cell.law, "load": cell.load, "discipline": cell.discipline, "delays": asdict(cell.delays),
            "mean_error": each.error, "saturated": saturated(each), **asdict(each.figures),
        }
        for cell, each in zip(cells, results, strict=True)
    ]  # fmt: skip


def _axes(law: str, results: Results) -> tuple[list[float], list[str]]:
    keys = [(load, discipline) for each, load, discipline in results if each == law]
    return sorted({load for load, _ in keys}), list(
        dict.fromkeys(discipline for _, discipline in keys)
    )


def _pair(result: Result) -> str:
    spread = result.figures.in_system
    return f"{_short(spread.mean)} / {_short(spread.p99)}" + (" ↑" if saturated(result) else "")


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
