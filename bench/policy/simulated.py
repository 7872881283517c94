"""The simulated part: which simulations are run, and what is reported of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.policy import drawing, grid, tables
from bench.policy.grid import Cell, Jobs, Slowness
from bench.policy.simulation import theory
from bench.policy.simulation.simulate import CENTRAL, DISCIPLINES, Delays, Plan
from bench.policy.trace import Trace
from bench.report import Report

DELAYS = (
    (0.0, 0.0),
    (0.001, 0.001),
    (0.002, 0.004),
    (0.005, 0.005),
    (0.01, 0.01),
    (0.02, 0.02),
    (0.05, 0.05),
)


@dataclass(frozen=True)
class Settings:
    """What was asked for. `laws` are of service; `trace` serves those named so."""

    plan: Plan
    loads: Sequence[float]
    laws: Sequence[str]
    arrivals: str
    jobs: int
    seed: int
    slowness: Slowness
    processes: int
    trace: Trace | None = None

    def drawn(self) -> dict[str, Jobs]:
        """The jobs of each law. Raises ValueError for a trace without what is asked of it."""
        recorded = (self.trace.gaps, self.trace.tokens) if self.trace else ()
        return {
            law: Jobs.drawn(self.arrivals, law, self.jobs, self.seed, recorded) for law in self.laws
        }

    def cell(self, law: str, load: float, discipline: str, delays: Delays | None = None) -> Cell:
        """One simulation, with the usual delays if not told otherwise."""
        late = self.slowness.of(discipline) if delays is None else delays
        return Cell(law, load, discipline, self.plan, late, self.seed)


def run(settings: Settings, result: Report, plot: Path | None) -> None:
    """Simulates, fills the report, and draws."""
    jobs = settings.drawn()
    cells = [
        settings.cell(law, load, name)
        for law in settings.laws
        for load in settings.loads
        for name in DISCIPLINES
    ]
    usual, late_load = settings.laws[0], _goal_load(settings.loads)
    late = [settings.cell(usual, late_load, tables.GOAL, Delays(*delays)) for delays in DELAYS]
    with report.progress() as bar:
        task = bar.add_task("simulating", total=len(cells) + len(late))
        found = grid.run([*cells, *late], jobs, settings.processes, lambda: bar.advance(task))
    results = tables.keyed(cells, found[: len(cells)])
    result.tables += [tables.of_law(law, results) for law in settings.laws]
    result.tables += [
        tables.details(usual, late_load, results),
        tables.ratios(results),
        tables.staleness(late, found[len(cells) :], results[usual, late_load, CENTRAL]),
    ]
    if (settings.arrivals, usual) == ("poisson", "exponential"):
        result.tables.append(tables.against_theory(usual, settings.plan, results))
    result.facts["simulated"] = tables.records([*cells, *late], found)
    result.notes += _notes(settings, results, result)
    if plot is not None:
        drawn = drawing.picture(usual, results, _caption(settings))
        result.facts["pictures"] = [str(file) for file in drawing.draw([drawn], plot)]


def _goal_load(loads: Sequence[float]) -> float:
    """The load of the goal, or the nearest one."""
    return min(loads, key=lambda load: abs(load - tables.GOAL_LOAD))


def _notes(settings: Settings, results: tables.Results, result: Report) -> list[str]:
    late = settings.slowness
    report_ms = (
        "as often as the policy asks" if late.report is None else f"{late.report * 1000:g} ms"
    )
    notes = [
        "the same jobs at the same times for every discipline; 10 % warm-up not counted; ±: 95 %, batch means.",
        f"tree policies: {late.hop * 1000:g} ms a hop, counters at most every: {report_ms}, beside a mean service of "
        f"{late.service:g} s. The other disciplines know everything at once.",
        "↑: some nodes are busy nearly all the time, so the figure depends on the length of the run.",
        "busiest: utilisation of the busiest node that holds jobs, or of all slots. at: who held them, by time.",
    ]
    if settings.plan == Plan.of(7, fanout=2) and settings.arrivals == "poisson":
        notes.append(
            f"paper, exponential: leaves are busy all the time from a load of {theory.paper_saturation():.3f} on; at "
            f"0.9 for {theory.paper_leaf_load(0.9):.1%} of it, and the mean is {theory.paper_mean(0.9):.1f} (exact; a "
            "run of this length meets that only roughly)."
        )
    key = ("exponential", tables.GOAL_LOAD, tables.GOAL)
    if key in results:
        mean, p99 = tables.ratio(*key[:2], results)
        met = mean <= tables.GOAL_MEAN and p99 <= tables.GOAL_P99
        result.facts["goal"] = {"mean_ratio": mean, "p99_ratio": p99, "met": met}
        notes.append(
            f"goal: {tables.GOAL} / {CENTRAL} at load 0.9, exponential: mean {mean:.3f} (at most {tables.GOAL_MEAN}), "
            f"p99 {p99:.3f} (at most {tables.GOAL_P99}): " + ("met" if met else "MISSED")
        )
    return notes


def _caption(settings: Settings) -> str:
    plan, late = settings.plan, settings.slowness
    return (
        f"{len(plan.parents)} nodes of {plan.slots} slot{'s' if plan.slots > 1 else ''}, "
        f"{'Poisson' if settings.arrivals == 'poisson' else settings.arrivals} arrivals; "
        f"{late.hop * 1000:g} ms a hop beside a mean service of {late.service:g} s; {settings.jobs} jobs a point"
    )
