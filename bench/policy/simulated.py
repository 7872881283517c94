"""The simulated part: every discipline at every load under every law, with the same jobs."""

import multiprocessing
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

from bench import report
from bench.policy.simulation import theory
from bench.policy.simulation.laws import ARRIVALS, SERVICES, Workload, draw, normalized
from bench.policy.simulation.outcome import Figures, confidence
from bench.policy.simulation.plan import Delays, Plan
from bench.policy.simulation.simulate import CENTRAL, DISCIPLINES, simulate
from bench.report import Report, Row, Table
from topology.dispatch import POLICIES

SATURATED = 0.995  # utilisation of the busiest node beyond which figures depend on the run's length
GOAL, GOAL_LOAD, GOAL_MEAN, GOAL_P99 = "hold-high", 0.9, 1.10, 1.25


@dataclass(frozen=True)
class Settings:
    """What is simulated. `hop`: delay of a message in mean service times, which are a second."""

    plan: Plan
    loads: Sequence[float]
    laws: Sequence[str]  # of service
    arrivals: str
    jobs: int
    seed: int
    hop: float
    processes: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation."""

    law: str
    load: float
    discipline: str
    delays: Delays


@dataclass(frozen=True, slots=True)
class Result:
    """Its figures. `error`: half of the 95 % confidence interval of the mean time in system."""

    figures: Figures
    error: float

    @property
    def is_saturated(self) -> bool:
        """Some node is busy nearly all the time, so that its backlog hardly ever ends."""
        return self.figures.busiest > SATURATED


Results = dict[tuple[str, float, str], Result]  # law, load, discipline


def delays_of(discipline: str, hop: float, service_seconds: float = 1.0) -> Delays:
    """The delays of a discipline's messages; `hop` in mean services of so many seconds."""
    policy = POLICIES.get(discipline)
    return Delays(hop, policy.report_seconds / service_seconds) if policy else Delays()


def workload(settings: Settings, law: str, load: float) -> Workload:
    """The same jobs for every discipline; they bring exactly the work that was asked for."""
    gaps = draw(ARRIVALS[settings.arrivals], settings.jobs, random.Random(settings.seed))
    services = draw(SERVICES[law], settings.jobs, random.Random(~settings.seed))
    rate = load * settings.plan.capacity
    return Workload.at_rate(rate, normalized(gaps), normalized(services))


def run(settings: Settings, result: Report) -> None:
    """Simulates, and fills the report."""
    cells = []
    for law in settings.laws:
        for load in settings.loads:
            for name in DISCIPLINES:
                delays = delays_of(name, settings.hop)
                cells.append(Cell(law, load, name, delays))
    with report.progress() as bar:
        task = bar.add_task("simulating", total=len(cells))
        done = simulate_all(settings, cells, lambda: bar.advance(task))
    results: Results = {}
    for cell, one in zip(cells, done, strict=True):
        results[cell.law, cell.load, cell.discipline] = one
    load = min(settings.loads, key=_distance_to_goal)
    result.tables += [law_table(law, settings.loads, results) for law in settings.laws]
    result.tables += [
        detail_table(settings.laws[0], load, results),
        ratio_table(settings, results),
    ]
    records = zip(cells, done, strict=True)
    result.facts["simulated"] = [asdict(cell) | asdict(one) for cell, one in records]
    _add_notes(settings, results, result)


def simulate_all(
    settings: Settings, cells: Sequence[Cell], advance: Callable[[], None]
) -> list[Result]:
    """In their order, by so many processes; calls `advance` after each."""
    results = []
    # spawned: this process may have threads (progress), of which a fork would copy half
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.processes, context) as pool:
        futures = [pool.submit(simulate_one, settings, cell) for cell in cells]
        for future in futures:
            results.append(future.result())
            advance()
    return results


def simulate_one(settings: Settings, cell: Cell) -> Result:
    jobs = workload(settings, cell.law, cell.load)
    outcome = simulate(cell.discipline, settings.plan, jobs, delays=cell.delays, seed=settings.seed)
    _, error = confidence(outcome.times_in_system())
    return Result(Figures.of(outcome), error)


def law_table(law: str, loads: Sequence[float], results: Results) -> Table:
    rows: list[Row] = []
    for discipline in DISCIPLINES:
        row: dict[str, object] = {"discipline": discipline}
        for load in loads:
            one = results[law, load, discipline]
            spread = one.figures.in_system
            mark = " ↑" if one.is_saturated else ""
            row[f"load {load:g}"] = f"{_short(spread.mean)} / {_short(spread.p99)}{mark}"
        rows.append(row)
    return Table(f"{law}: time in system, mean / p99, in service times", rows)


def detail_table(law: str, load: float, results: Results) -> Table:
    rows: list[Row] = []
    for discipline in DISCIPLINES:
        one = results[law, load, discipline]
        figures = one.figures
        places = [
            f"{place} {share:.0%}"
            for place, share in figures.backlog_share.items()
            if share >= 0.005
        ]
        rows.append(
            {
                "discipline": discipline,
                **asdict(figures.in_system),
                "±": one.error,
                "wait": figures.waiting.mean,
                "wait p99": figures.waiting.p99,
                "used": figures.utilisation,
                "busiest": figures.busiest,
                "backlog": figures.largest_backlog,
                "waits at": " ".join(places),
            }
        )
    return Table(f"{law}, load {load:g}, in service times", rows)


def ratio(law: str, load: float, results: Results) -> tuple[float, float]:
    """Mean and p99 of GOAL over those of the central queue."""
    ours = results[law, load, GOAL].figures.in_system
    best = results[law, load, CENTRAL].figures.in_system
    return ours.mean / best.mean, ours.p99 / best.p99


def ratio_table(settings: Settings, results: Results) -> Table:
    rows: list[Row] = []
    for law in settings.laws:
        means: dict[str, object] = {"law": f"{law}, mean"}
        p99s: dict[str, object] = {"law": f"{law}, p99"}
        for load in settings.loads:
            means[f"load {load:g}"], p99s[f"load {load:g}"] = ratio(law, load, results)
        rows += [means, p99s]
    return Table(f"{GOAL} / {CENTRAL}", rows, digits=3)


def _add_notes(settings: Settings, results: Results, result: Report) -> None:
    result.notes += [
        "the same jobs for every discipline; 10 % warm-up not counted; ±: 95 %, batch means.",
        f"messages of tree policies take {settings.hop:g} of a mean service a hop; the other "
        "disciplines know everything at once.",
        "↑: some nodes are busy nearly all the time: the figure depends on the run's length.",
        "busiest: utilisation of the busiest node where jobs wait, or of all slots.",
        f"paper, 7 nodes, exponential: exact mean at 0.9 {theory.paper_mean(0.9):.1f}; its "
        f"leaves saturate at a load of {theory.paper_saturation():.3f}.",
    ]
    if ("exponential", GOAL_LOAD, GOAL) in results:
        mean, p99 = ratio("exponential", GOAL_LOAD, results)
        met = mean <= GOAL_MEAN and p99 <= GOAL_P99
        result.facts["goal"] = {"mean_ratio": mean, "p99_ratio": p99, "met": met}
        verdict = "met" if met else "MISSED"
        result.notes.append(
            f"goal: {GOAL} / {CENTRAL} at load 0.9, exponential: mean {mean:.3f} (at most "
            f"{GOAL_MEAN}), p99 {p99:.3f} (at most {GOAL_P99}): {verdict}"
        )


def _distance_to_goal(load: float) -> float:
    return abs(load - GOAL_LOAD)


def _short(value: float) -> str:
    digits = 2 if value < 10 else 1
    return f"{value:.{digits}f}"
