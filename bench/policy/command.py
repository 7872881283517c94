"""`bench policy`: how long jobs wait under each dispatch rule, simulated, or on a real tree."""

from dataclasses import asdict
from pathlib import Path

import click

from bench import options
from bench.policy import measured, simulated
from bench.policy.simulation.jobs import Workload
from bench.policy.simulation.tree import Plan
from bench.report import Report
from topology.dispatch import DEFAULT_POLICY, POLICIES

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
    simulated.run(result, plan, load or _LOADS, count, seed)
    result.finish(json_file)
