"""`bench policy`: how long jobs wait under each dispatch rule, simulated, or on a real tree."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from bench import options
from bench.policy import measured
from bench.policy.measured import row
from bench.policy.simulation.jobs import Workload
from bench.policy.simulation.simulate import CENTRAL, DISCIPLINES, erlang_c_mean, simulate
from bench.policy.simulation.tree import Plan
from bench.report import Progress, Report, Table
from topology.dispatch import DEFAULT_POLICY, POLICIES

NOTES = (
    f"goal at load 0.9: {DEFAULT_POLICY} over {CENTRAL} at most 1.10 (mean), 1.25 (p99)",
    "One sample of jobs: what it lacks to Erlang's formula, it lacks in every row. Near "
    "saturation, as `paper` is from a load of 0.915 on with the default tree, figures depend on "
    "the run's length.",
    "service is exponential and takes 1 s, a message in the tree 2 ms. The central queue knows "
    "everything at once; no rule that does not know service times has a smaller mean.",
)


def simulate_all(result: Report, plan: Plan, loads: Sequence[float], jobs: int, seed: int) -> None:
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


_LOADS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_REAL_LOADS = (0.9,)
_LOAD = click.FloatRange(0.05, 0.98)
_POLICY = click.Choice(list(POLICIES))


@click.command
@click.option("--nodes", type=options.COUNT, default=7, help="Nodes below the root.")
@click.option("--fanout", type=click.IntRange(min=0), default=2, help="0: all below the root.")
@click.option("--slots", type=options.COUNT, default=1, help="Slots of a node.")
@click.option("--load", type=_LOAD, multiple=True, help="Share of all slots in use; repeatable.")
@click.option("-n", "--jobs", type=click.IntRange(min=100), help="15000; with --real 2000.")
@click.option("--seed", type=int, default=1, help="Of everything random.")
@click.option("--real", is_flag=True, help="Measure a real tree instead, with the echo engine.")
@click.option("--policy", type=_POLICY, multiple=True, help="--real: rule; repeatable.")
@options.json_file
def command(
    nodes: int,
    fanout: int,
    slots: int,
    load: tuple[float, ...],
    jobs: int | None,
    seed: int,
    real: bool,
    policy: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """How long jobs wait under each dispatch rule, beside one central queue."""
    plan = Plan(nodes, fanout or None, slots)
    if real:
        count, loads = jobs or 2000, load or _REAL_LOADS
        result = Report("policy-real", asdict(plan) | {"jobs": count, "seed": seed})
        good = []
        for name in policy or (DEFAULT_POLICY,):
            for share in loads:
                workload = Workload.poisson(share * plan.capacity, count, seed)
                good.append(measured.run(result, plan, name, workload))
        result.notes.append(measured.GOALS)
        result.finish(json_file)
        raise SystemExit(int(not all(good)))
    count = jobs or 15_000
    result = Report("policy", asdict(plan) | {"jobs": count, "seed": seed})
    simulate_all(result, plan, load or _LOADS, count, seed)
    result.finish(json_file)
