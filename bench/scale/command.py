"""`bench scale`: what a job costs against the depth of the tree and the number of its nodes, and what a tree at rest
costs.

Three series of trees, so that depth and number are told apart (shapes.py). Jobs of one token of the echo engine come at
a fixed rate, far from saturation: what is seen is the way through the tree. Processor time is read process by process.
"""

import asyncio
import os
import uuid
from dataclasses import asdict, replace
from typing import Annotated

import typer

from bench import report
from bench.report import Report
from bench.scale import measure, programs, shapes, table
from bench.scale.measure import Measured, Settings
from bench.scale.shapes import SERIES, Shape
from broker.client import Client
from topology.dispatch import POLICIES

_QUICK_DEPTHS = (1, 2, 3)


def command(
    rate: Annotated[float, typer.Option(min=0.1, help="Jobs a second, in the mean.")] = 20.0,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs in a block.")] = 60,
    blocks: Annotated[
        int, typer.Option(min=1, help="Blocks a tree; the median one is reported.")
    ] = 3,
    rest: Annotated[float, typer.Option(min=2, help="Seconds at rest a tree.")] = 6.0,
    series: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(SERIES)}; repeatable.")
    ] = None,
    per_process: Annotated[
        int, typer.Option(min=1, help="Nodes that share a process at most.")
    ] = 8,
    slots: Annotated[int, typer.Option(min=1, help="Of each leaf.")] = 8,
    policy: Annotated[
        str, typer.Option(help=f"Dispatch rule: {', '.join(POLICIES)}.")
    ] = "hold-high",
    seed: Annotated[int, typer.Option(help="Decides the pauses between jobs.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Depths 1 to 3, one short block: a minute or two.")
    ] = False,
    json_file: report.JsonOption = None,
) -> None:
    """Processor time, latency and messages of a job in trees of 1 to 63 nodes, depth 1 to 6; what they cost idle."""
    if unknown := [name for name in series or [] if name not in SERIES]:
        raise typer.BadParameter(f"no series {unknown[0]!r}; there are: {', '.join(SERIES)}")
    if policy not in POLICIES:
        raise typer.BadParameter(f"no policy {policy!r}; there are: {', '.join(POLICIES)}")
    blocks, jobs, rest = (1, min(jobs, 40), min(rest, 4.0)) if quick else (blocks, jobs, rest)
    settings = Settings(rate, jobs, blocks, rest, min(jobs, 40), slots, per_process, policy, seed)
    depths = _QUICK_DEPTHS if quick else shapes.DEPTHS
    wanted = [shape for name in series or SERIES for shape in shapes.series(name, depths)]
    result = Report(
        "scale", {**asdict(settings), "depths": list(depths), "series": list(series or SERIES)}
    )
    alone, found = asyncio.run(_run(wanted, settings))
    table.tell(result, alone, found)
    result.finish(json_file)


async def _run(wanted: list[Shape], settings: Settings) -> tuple[dict[str, float], list[Measured]]:
    """The broker without nodes, then one tree after the other."""
    found: dict[tuple[int, ...], Measured] = {}
    async with programs.broker() as place:
        client = Client(
            place.address.amqp["api"], process=f"bench-{os.getpid()}-{uuid.uuid4().hex[:4]}"
        )
        await client.start()
        try:
            while not client.connected:
                await asyncio.wait_for(client.changed(), 10)
            alone = await measure.broker_alone(place, settings.rest)
            with report.progress() as bar:
                task = bar.add_task("growing", total=len(wanted))
                for shape in wanted:
                    bar.update(
                        task,
                        description=f"{shape.series}, {shape.nodes} nodes, depth {shape.depth}",
                    )
                    if shape.outline not in found:  # a single node is one in every series
                        found[shape.outline] = await measure.tree(place, client, shape, settings)
                    bar.advance(task)
        finally:
            await client.stop()
    return alone, [replace(found[shape.outline], shape=shape) for shape in wanted]
