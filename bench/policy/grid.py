"""The simulations of one run: every discipline at every load under every law, the same jobs for all of a law."""

import multiprocessing
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from bench.policy.simulation.simulate import (
    ARRIVALS,
    SERVICES,
    Delays,
    Figures,
    Plan,
    Workload,
    confidence,
    draw,
    repeated,
    simulate,
)
from topology.dispatch import POLICIES

TRACE = "trace"


@dataclass(frozen=True, slots=True)
class Jobs:
    """What comes in: gaps before the jobs and their service times, each with a mean of 1."""

    gaps: Sequence[float]
    services: Sequence[float]

    @classmethod
    def drawn(
        cls, arrivals: str, service: str, count: int, seed: int, trace: tuple[Sequence[float], ...]
    ) -> "Jobs":
        """By the named laws. `trace` is (gaps, services) for those named `trace`. Raises ValueError for a bad one.

        What is drawn is scaled to a mean of exactly 1, like a trace: at a load of 0.95 a sample that happens to bring
        1 % more work waits a quarter longer.
        """
        gaps, services = trace or ((), ())
        if arrivals != TRACE:
            gaps = draw(ARRIVALS[arrivals], count, random.Random(seed))
        if service != TRACE:
            services = draw(SERVICES[service], count, random.Random(~seed))
        return cls(repeated(gaps, count), repeated(services, count))


@dataclass(frozen=True, slots=True)
class Slowness:
    """How slow messages are, in seconds, beside a mean service of `service`. `report` None: as each policy asks."""

    service: float
    hop: float
    report: float | None = None

    def of(self, discipline: str) -> Delays:
        """In mean service times."""
        policy = POLICIES.get(discipline)
        if policy is None:
            return Delays()
        report = policy.report_seconds if self.report is None else self.report
        return Delays(self.hop / self.service, report / self.service)


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation."""

    law: str
    load: float
    discipline: str
    plan: Plan
    delays: Delays
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """Figures of one cell; `error` is half of the 95 % confidence interval of the mean time in system."""

    figures: Figures
    error: float


def run(
    cells: Sequence[Cell], jobs: Mapping[str, Jobs], processes: int, advance: Callable[[], None]
) -> list[Result]:
    """The results of the cells, in their order, from so many processes; `jobs` are by law. `advance()` after each."""
    if processes <= 1:
        return [_advancing(figures_of(cell, jobs[cell.law]), advance) for cell in cells]
    # spawned: this process may have threads (progress), which a fork would copy half of
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(figures_of, cell, jobs[cell.law]) for cell in cells]
        return [_advancing(future.result(), advance) for future in futures]


def figures_of(cell: Cell, jobs: Jobs) -> Result:
    """Simulates one cell."""
    workload = Workload.at_rate(cell.load * cell.plan.capacity, jobs.gaps, jobs.services)
    outcome = simulate(cell.discipline, cell.plan, workload, delays=cell.delays, seed=cell.seed)
    return Result(Figures.of(outcome), confidence(outcome.times_in_system())[1])


def _advancing(result: Result, advance: Callable[[], None]) -> Result:
    advance()
    return result
