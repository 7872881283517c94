"""`bench gpu`: the same requests through the whole system, and to the engine alone, in one run.

First an instance of its own (API, broker, root, one node) with streams over HTTP; with `--gpus N` another one with N
nodes and N times the requests; when it has ended, the engine by itself in a process of its own. So each has the devices
alone.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import report
from bench.engine import command as engine
from bench.engine import shapes
from bench.engine.reading import Ask
from bench.engine.subject import find_device
from bench.gpu import system, table
from bench.gpu.subject import Prepared, Random, Subject
from bench.gpu.table import Cells
from bench.instance import NotStarted
from bench.report import Report
from cli.home import module_command, module_environment
from cli.prepare import gpus as machine_gpus
from worker.models import installed

_ENGINE_SECONDS = 1800.0


def command(
    device: Annotated[str, typer.Option(help="cuda, cuda:N, cpu, or auto.")] = "auto",
    model: Annotated[str | None, typer.Option(help="A prepared model's name, or a folder.")] = None,
    random_shape: Annotated[
        str | None, typer.Option("--random-weights", help=f"Instead: {', '.join(shapes.SHAPES)}.")
    ] = None,
    gpus: Annotated[
        int, typer.Option(min=1, help="Also the system with so many nodes, each on a GPU.")
    ] = 1,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests at once for each node, repeatable.")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    answer: Annotated[
        int | None, typer.Option(min=2, help="Tokens of each answer; default 256, on a CPU 64.")
    ] = None,
    alone: Annotated[
        bool, typer.Option("--engine/--no-engine", help="Also the engine alone.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the prompts' words.")] = 1,
    json_file: report.JsonOption = None,
) -> None:
    """The engine's speed behind API, broker and tree, beside the engine alone."""
    if (model is None) == (random_shape is None):
        raise typer.BadParameter("name one: --model or --random-weights")
    if random_shape is not None and random_shape not in shapes.SHAPES:
        raise typer.BadParameter(
            f"{random_shape!r} is none of {', '.join(shapes.SHAPES)}", param_hint="--random-weights"
        )
    place = find_device(device)
    check_gpus(gpus, place, machine_gpus.count())
    sizes = tuple(concurrency or (engine.CPU_SIZES if place == "cpu" else engine.GPU_SIZES))
    ask = Ask(prompt, answer or (64 if place == "cpu" else 256))
    subject = (
        Random(random_shape)
        if random_shape is not None
        else Prepared(installed(str(model)).absolute())
    )
    settings = {
        "device": place,
        "model": subject.name,
        "slots": max(sizes),
        "concurrency": sizes,
        "seed": seed,
    }
    result = Report(
        "gpu",
        {**settings, "gpus": gpus, "prompt": prompt, "answer": ask.answer},
        notes=list(_NOTES),
    )
    found = {
        nodes: system.measure(subject, place, nodes, sizes, ask, seed)
        for nodes in dict.fromkeys((1, gpus))
    }
    engines = _alone(subject, place, sizes, ask, seed) if alone else {}
    _tell(result, found, engines, place)
    result.finish(json_file)


def check_gpus(wanted: int, device: str, there: int) -> None:
    """Raises BadParameter where so many nodes would not have a GPU each."""
    if wanted == 1 or device == "cpu":
        return
    if device != "cuda:0":
        raise typer.BadParameter(
            "several GPUs are counted from the first: say --device auto", param_hint="--gpus"
        )
    if wanted > there:
        raise typer.BadParameter(f"this machine has {there}", param_hint="--gpus")


def _tell(
    result: Report, found: Mapping[int, Cells], engines: Mapping[str, Any], device: str
) -> None:
    ours, (most, together) = found[1], max(found.items())
    if most > 1:
        result.tables.append(table.scaling(ours, together, most))
        result.notes += [_SHARED] if device == "cpu" else []
    systems = {"system" if nodes == 1 else f"{nodes} GPUs": cells for nodes, cells in found.items()}
    result.tables += [
        table.rates(ours, engines),
        table.delays(systems, engines),
        table.processors(found),
    ]
    result.facts = {
        "system": {str(size): asdict(cell.reading) for size, cell in ours.items()},
        "nodes": {
            str(nodes): {str(size): asdict(cell) for size, cell in cells.items()}
            for nodes, cells in found.items()
        },
        "engine": dict(engines),
    }


_NOTES = (
    "system: streams of /v1/completions over HTTP, API, broker, root and one node on this machine, the load generator "
    "beside them. engine: the same requests through the engine's protocol, in one process.",
    "processor time: of each process during the measured wave. load is the load generator; it and the API are one "
    "process each, which computes on one core at a time: near 1.0 it may be what bounds the rest.",
    "gap: between two events of one stream. An event may carry several tokens: gaps are longer then.",
)
_SHARED = "The nodes computed on one CPU and shared its cores: here the ratio says nothing."


def _alone(
    subject: Subject, device: str, sizes: Sequence[int], ask: Ask, seed: int
) -> dict[str, Any]:
    """What `bench engine` found, by number of requests at once. Raises NotStarted."""
    with tempfile.TemporaryDirectory(prefix="canopy-bench-") as place:
        file = Path(place) / "engine.json"
        command = module_command(
            "bench.engine", *subject.alone, "--device", device, "--only", "engine", "--rows", "uniform",
            "--prompt", str(ask.prompt), "--answer", str(ask.answer), "--seed", str(seed), "--json", str(file),
            *(word for size in sizes for word in ("--concurrency", str(size))),
        )  # fmt: skip
        try:
            subprocess.run(
                command,
                env=module_environment(),
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=_ENGINE_SECONDS,
            )
            facts = json.loads(file.read_text())["facts"]
        except (subprocess.SubprocessError, OSError) as error:
            raise NotStarted(f"the engine alone was not measured: {error}") from error
    return {str(each["at_once"]): each["reading"] for each in facts["found"]}
