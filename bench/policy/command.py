"""`bench policy`: see the package."""

import os
from dataclasses import asdict
from typing import Annotated

import typer

from bench import report
from bench.policy import measured, simulated
from bench.policy.simulation.laws import ARRIVALS, SERVICES
from bench.policy.simulation.plan import Plan
from bench.report import Report
from topology.dispatch import POLICIES


def command(
    nodes: Annotated[int, typer.Option(min=1, help="Nodes below the root.")] = 7,
    fanout: Annotated[
        int, typer.Option(min=0, help="Children of a node at most; 0: all below the root.")
    ] = 2,
    slots: Annotated[int, typer.Option(min=1, help="Slots of a node.")] = 1,
    loads: Annotated[
        str, typer.Option(help="Shares of all slots that the jobs keep busy.")
    ] = "0.5,0.6,0.7,0.8,0.9,0.95",
    services: Annotated[str, typer.Option(help="Laws of service.")] = ",".join(SERVICES),
    arrivals: Annotated[str, typer.Option(help=f"{', '.join(ARRIVALS)}.")] = "poisson",
    jobs: Annotated[int | None, typer.Option("-n", "--jobs", min=100, help="Jobs a run.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 1,
    hop_ms: Annotated[
        float, typer.Option(min=0, help="A message from node to node; a service takes 1 s.")
    ] = 2.0,
    processes: Annotated[
        int, typer.Option(min=1, help="Simulations at the same time.")
    ] = os.cpu_count() or 1,
    real: Annotated[
        bool, typer.Option("--real", help="Measure a real tree instead, with the echo engine.")
    ] = False,
    policies: Annotated[str, typer.Option(help="--real: dispatch rules to measure.")] = "hold-high",
    tokens: Annotated[int, typer.Option(min=1, help="--real: mean length of the answers.")] = 40,
    token_delay: Annotated[float, typer.Option(min=0.001, help="--real: seconds a token.")] = 0.01,
    load: Annotated[
        float, typer.Option(min=0.05, max=0.98, help="--real: share of all slots.")
    ] = 0.9,
    json_file: report.JsonOption = None,
) -> None:
    """How long jobs wait under each dispatch rule, beside one central queue."""
    if real:
        tree = measured.Settings(
            nodes,
            fanout or None,
            slots,
            load,
            jobs or 2000,
            tokens,
            token_delay,
            seed,
            hop_ms / 1000,
        )
        names = report.choose(policies, POLICIES, "--policies")
        result = Report("policy-real", asdict(tree) | {"policies": names})
        all_good = measured.run(tree, names, result)
        result.finish(json_file)
        raise typer.Exit(0 if all_good else 1)
    settings = simulated.Settings(
        plan=Plan.of(nodes, fanout=fanout or None, slots=slots),
        loads=_parse_loads(loads),
        laws=report.choose(services, SERVICES, "--services"),
        arrivals=report.choose(arrivals, ARRIVALS, "--arrivals")[0],
        jobs=jobs or 15_000,
        seed=seed,
        hop=hop_ms / 1000,
        processes=processes,
    )
    result = Report("policy", asdict(settings))
    simulated.run(settings, result)
    result.finish(json_file)


def _parse_loads(text: str) -> list[float]:
    try:
        loads = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--loads") from error
    if not all(0 < load < 1 for load in loads):
        raise typer.BadParameter("a load is above 0 and below 1", param_hint="--loads")
    return loads
