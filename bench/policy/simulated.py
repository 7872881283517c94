"""The simulated part: every discipline at every load, with the same jobs."""

from collections.abc import Sequence

from bench.policy.simulation.jobs import Workload
from bench.policy.simulation.simulate import CENTRAL, DISCIPLINES, erlang_c_mean, simulate
from bench.policy.simulation.tree import Plan
from bench.report import Progress, Report, Row, Table
from bench.stats import Spread
from topology.dispatch import DEFAULT_POLICY

NOTES = (
    f"goal at load 0.9: {DEFAULT_POLICY} over {CENTRAL} at most 1.10 (mean), 1.25 (p99)",
    "One sample of jobs: what it lacks to Erlang's formula, it lacks in every row. Near "
    "saturation, as `paper` is from a load of 0.915 on with the default tree, figures depend on "
    "the run's length.",
    "service is exponential and takes 1 s, a message in the tree 2 ms. The central queue knows "
    "everything at once; no rule that does not know service times has a smaller mean.",
)


def run(result: Report, plan: Plan, loads: Sequence[float], jobs: int, seed: int) -> None:
    """Simulates so many jobs at each load, and fills the report."""
    progress = Progress(len(loads))
    for load in loads:
        progress.step(f"simulating load {load:g}")
        workload = Workload.poisson(load * plan.capacity, jobs, seed)
        times = {}
        for name in DISCIPLINES:
            starts = simulate(name, plan, workload, service_seconds=1.0)
            times[name] = workload.times_in_system(starts)
        rows = [row(name, spread, times[CENTRAL]) for name, spread in times.items()]
        rows.append(
            {"": f"{CENTRAL}, Erlang's formula", "mean": erlang_c_mean(plan.capacity, load)}
        )
        result.tables.append(Table(f"load {load:g}: time in system, mean services", rows, digits=3))
    result.notes += NOTES


def row(name: str, times: Spread, central: Spread) -> Row:
    """A discipline beside the central queue."""
    cells: dict[str, object] = {"": name, "mean": times.mean, "p50": times.p50, "p99": times.p99}
    cells["mean / central"] = times.mean / central.mean
    cells["p99 / central"] = times.p99 / central.p99
    return cells
