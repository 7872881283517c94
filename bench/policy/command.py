"""`bench policy`: see the package."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from bench import instance, report
from bench.policy import drawing, grid, measured, simulated
from bench.policy.grid import Slowness
from bench.policy.simulation.simulate import ARRIVALS, SERVICES, Plan
from bench.policy.trace import BadTrace, Trace, read
from bench.report import Report
from topology.dispatch import POLICIES

LAWS = ",".join(SERVICES)
LOADS = "0.5,0.6,0.7,0.8,0.9,0.95"
SIMULATED_JOBS, REAL_JOBS = 15_000, 2000


def command(
    nodes: Annotated[int, typer.Option(min=1, help="Nodes below the root.")] = 7,
    fanout: Annotated[
        int | None, typer.Option(min=0, help="Children a node at most; 0: all below the root.")
    ] = 2,
    parents: Annotated[
        str | None,
        typer.Option(help="Another tree: n1=root,n2=n1,... instead of --nodes and --fanout."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Slots a node.")] = 1,
    loads: Annotated[
        str, typer.Option(help="Shares of all slots that the jobs keep busy.")
    ] = LOADS,
    services: Annotated[
        str, typer.Option(help=f"Laws of service: {', '.join(SERVICES)}, {grid.TRACE}.")
    ] = LAWS,
    arrivals: Annotated[
        str, typer.Option(help=f"{', '.join(ARRIVALS)} or {grid.TRACE}.")
    ] = "poisson",
    trace: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="CSV of requests, for the laws named trace."
        ),
    ] = None,
    jobs: Annotated[int | None, typer.Option("-n", "--jobs", min=100, help="Jobs a run.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 1,
    service_seconds: Annotated[
        float, typer.Option(min=0.001, help="Mean service; messages are slow beside it.")
    ] = 1,
    hop_ms: Annotated[float, typer.Option(min=0, help="A message from node to node.")] = 2.0,
    report_ms: Annotated[
        float | None,
        typer.Option(
            min=0, help="Counters are told at most so often; default: as the policy asks."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(file_okay=False, help="Draw policy.png and policy.svg into DIR.")
    ] = None,
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
    """How long jobs wait under each dispatch rule: simulated, or with --real measured; beside one central queue."""
    fanout = fanout or None
    if real:
        asked = measured.Settings(
            nodes=nodes, fanout=fanout, slots=slots, load=load, jobs=jobs or REAL_JOBS, tokens=tokens,
            token_delay=token_delay, seed=seed, hop=hop_ms / 1000,
        )  # fmt: skip
        named = _named(policies, POLICIES, "--policies")
        result = Report("policy-real", vars(asked) | {"policies": named})
        good = measured.run(asked, named, result)
        result.finish(json_file)
        raise typer.Exit(0 if good else 1)
    recorded = _read(trace)
    settings = simulated.Settings(
        plan=_plan(nodes, fanout, parents, slots), loads=_numbers(loads), jobs=jobs or SIMULATED_JOBS, seed=seed,
        laws=_named(services, (*SERVICES, grid.TRACE), "--services"),
        arrivals=_named(arrivals, (*ARRIVALS, grid.TRACE), "--arrivals")[0],
        slowness=Slowness(service_seconds, hop_ms / 1000, None if report_ms is None else report_ms / 1000),
        processes=processes, trace=recorded,
    )  # fmt: skip
    result = Report("policy", _shown(settings, trace))
    try:
        simulated.run(settings, result, plot)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except drawing.NotDrawn as error:
        raise instance.NotStarted(f"no picture: {error}") from error
    result.finish(json_file)


def _plan(nodes: int, fanout: int | None, parents: str | None, slots: int) -> Plan:
    try:
        if parents is None:
            return Plan.of(nodes, fanout=fanout, slots=slots)
        edges = [edge.partition("=") for edge in parents.split(",")]
        return Plan({node.strip(): parent.strip() for node, _, parent in edges}, slots)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--parents") from error


def _numbers(text: str) -> list[float]:
    try:
        found = [float(each) for each in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--loads") from error
    if not all(0 < each < 1 for each in found):
        raise typer.BadParameter("a load is above 0 and below 1", param_hint="--loads")
    return found


def _named(text: str, known: Collection[str], option: str) -> list[str]:
    found = [each.strip() for each in text.split(",")]
    if unknown := [each for each in found if each not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint=option)
    return found


def _read(trace: Path | None) -> Trace | None:
    try:
        return read(trace) if trace else None
    except BadTrace as error:
        raise typer.BadParameter(str(error), param_hint="--trace") from error


def _shown(settings: simulated.Settings, trace: Path | None) -> dict[str, object]:
    plan, late = settings.plan, settings.slowness
    return {
        "parents": dict(plan.parents), "slots": plan.slots, "loads": settings.loads, "laws": settings.laws,
        "arrivals": settings.arrivals, "trace": trace and trace.name, "jobs": settings.jobs, "seed": settings.seed,
        "service_seconds": late.service, "hop_seconds": late.hop, "report_seconds": late.report,
    }  # fmt: skip
