"""`bench engine`: see the package."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bench import report
from bench.engine import shapes
from bench.engine.baselines import BASELINES
from bench.engine.load import Ask
from bench.engine.measure import BASELINES_PART, ENGINE_PART, LIMIT_PART, Run, Settings
from bench.engine.prompts import Prompts
from bench.engine.subject import (
    DividedModel,
    Subject,
    find_device,
    from_folder,
    random_weights,
    read_tokenizer,
)
from bench.engine.tables import ARRIVALS, ENGINE, RAGGED, UNIFORM
from bench.errors import NotStarted
from bench.report import Report, Table
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.compute_thread import run_in_thread
from worker.models import installed

if TYPE_CHECKING:
    from bench.engine.system import Cell

ROWS = (UNIFORM, RAGGED, ARRIVALS)
PARTS = (ENGINE_PART, BASELINES_PART, LIMIT_PART)
GPU_CONCURRENCY, CPU_CONCURRENCY = (1, 8, 32, 128, 256), (1, 4, 16)


def command(
    device: Annotated[
        str,
        typer.Option(help="cuda, cuda:N, cpu, or auto; cuda:0,cuda:1: layers over both (--model)."),
    ] = "auto",
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="Processes that divide the model (--model).")
    ] = 1,
    model: Annotated[str | None, typer.Option(help="A prepared model's name, or a folder.")] = None,
    shape: Annotated[
        str | None, typer.Option("--random-weights", help=f"Instead: {', '.join(shapes.SHAPES)}.")
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests at once, repeatable.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Of the engine; default: the largest concurrency.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=16, help="Tokens a slot; default: what the memory allows.")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    answer: Annotated[
        int | None, typer.Option(min=2, help="Tokens of each answer; default 256, on a CPU 64.")
    ] = None,
    rows: Annotated[str, typer.Option(help=f"Loads: {', '.join(ROWS)}.")] = ",".join(ROWS),
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Ragged: requests a second (Poisson), no closed loop."),
    ] = None,
    baselines: Annotated[str, typer.Option(help=f"Of {', '.join(BASELINES)}; or none.")] = ",".join(
        BASELINES
    ),
    only: Annotated[str, typer.Option(help=f"Parts: {', '.join(PARTS)}.")] = ",".join(PARTS),
    newcomers: Annotated[
        int | None, typer.Option(min=1, help="Arrivals: how many; default 20, on a CPU 5.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Another engine: a name, or a module's dotted path.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of lengths, words and arrivals.")] = 1,
    cap: Annotated[
        float, typer.Option(min=1, help="Seconds that a row of a baseline may take.")
    ] = 30.0,
    with_system: Annotated[
        bool, typer.Option("--system", help="Uniform load, on API, broker and tree, too.")
    ] = False,
    gpus: Annotated[
        int, typer.Option(min=1, help="--system: also with so many nodes, each on a GPU.")
    ] = 1,
    json_file: report.JsonOption = None,
) -> None:
    """Tokens a second of an engine and their delays, beside transformers and the memory's limit."""
    place = find_device(device)
    is_cpu = place == "cpu"
    is_divided = tensor_parallel > 1 or "," in place
    if (model is None) == (shape is None):
        raise typer.BadParameter("name one: --model or --random-weights")
    if is_divided and (model is None or context or engine or with_system):
        raise typer.BadParameter("what is divided is a --model, alone", param_hint="--model")
    if shape is not None:
        report.choose(shape, shapes.SHAPES, "--random-weights")
    sizes = tuple(concurrency or (CPU_CONCURRENCY if is_cpu else GPU_CONCURRENCY))
    settings = Settings(
        device=place,
        slots=slots or max(sizes),
        concurrency=sizes,
        prompt=prompt,
        answer=answer or (64 if is_cpu else 256),
        rows=(UNIFORM,) if with_system else report.choose(rows, ROWS, "--rows"),
        parts=(ENGINE_PART,) if is_divided or with_system else report.choose(only, PARTS, "--only"),
        baselines=() if baselines == "none" else report.choose(baselines, BASELINES, "--baselines"),
        rate=rate,
        newcomers=newcomers or (5 if is_cpu else 20),
        seed=seed,
        cap=cap,
    )
    if max(sizes) > settings.slots:
        message = f"{max(sizes)} requests at once need as many slots"
        raise typer.BadParameter(message, param_hint="--slots")
    result = Report("engine", asdict(settings), notes=list(_NOTES))
    result.settings = {**result.settings, "model": model or shape, "processes": tensor_parallel}
    try:
        systems = _measure_systems(model, shape, settings, gpus) if with_system else {}
        subject = run_in_thread(lambda: _subject(model, shape, settings, context, tensor_parallel))
    except EngineUnavailable as error:
        raise NotStarted(str(error)) from error
    if prompt + settings.answer > subject.context:
        message = f"prompt and answer do not fit into {subject.context} tokens"
        raise typer.BadParameter(message, param_hint="--answer")
    result.tables = [_facts(subject, settings, engine)]
    if is_divided:
        result.notes.append(_DIVIDED)
    run = Run(settings, subject, result, json_file)
    run.run(engine)
    if systems:
        from bench.engine import system

        alone = {it.concurrency: it.reading for it in run.results if it.contender == ENGINE}
        result.tables += system.tables(systems, alone)
        result.facts["systems"] = {
            f"{nodes} x {size}": asdict(cell)
            for nodes, cells in systems.items()
            for size, cell in cells.items()
        }
        result.notes.append(_SYSTEM)
    result.finish(json_file)


_NOTES = (
    "engine: through its protocol, in this process. TTFT: until its first chunk with a token. gap: "
    "between two chunks of one answer.",
    "tok/s: answers' tokens over the whole time, prefill included; a ragged closed loop counts "
    "until its last request begins. ms a step: while all rows decode.",
    "generate: one request at a time; static: `generate` for all, padded; continuous: "
    "transformers' continuous batching with its defaults. All use the same weights.",
    "ragged: answers' lengths of a published trace; prompts are drawn from the same quantiles.",
    "pause: of every stream the longest gap between a newcomer's request and its first token.",
    "limit: all weights and all rows' keys and values, read once a step, at the speed of a copy.",
)
_DIVIDED = "no baselines and no limit: they need the whole model on one device."
_SYSTEM = (
    "system: streams of /v1/completions through API, broker, root and nodes on this machine. load "
    "is the load generator; it, the API and the root compute on one core each: near 1.0 they bound "
    "the rest. Nodes on one CPU share its cores: there the ratio to one node says nothing."
)


def _subject(
    model: str | None, shape: str | None, settings: Settings, context: int | None, ranks: int
) -> Subject:
    if shape is not None:
        return random_weights(shape, settings.device, settings.slots, context)
    folder = installed(str(model))
    if ranks > 1 or "," in settings.device:
        return DividedModel(folder, ranks)
    return from_folder(folder, settings.device, settings.slots, context)


def _measure_systems(
    model: str | None, shape: str | None, settings: Settings, gpus: int
) -> dict[int, "dict[int, Cell]"]:
    """By number of nodes. Several nodes take the GPUs in turn."""
    from bench.engine import system  # with Canopy's other rooms, which `bench.engine` may lack
    from cli.prepare import gpus as machine

    if gpus > 1 and settings.device != "cpu" and gpus > machine.count():
        raise typer.BadParameter(f"this machine has {machine.count()}", param_hint="--gpus")
    if shape is not None:
        vocabulary = shapes.config(shape).vocab_size
        prompts = Prompts(shapes.tokenizer(vocabulary), vocabulary, shape, settings.seed)
        options = ["--engine", "bench.engine.node_engine", "--model", shape]
    else:
        folder = installed(str(model)).absolute()
        tokenizer = read_tokenizer(folder)
        prompts = Prompts(tokenizer, len(tokenizer), folder.name, settings.seed)
        options = ["--engine", "transformers", "--model", str(folder)]
    ask = Ask(settings.prompt, settings.answer)
    systems = {}
    for nodes in dict.fromkeys((1, gpus)):
        place = settings.device if nodes == 1 or settings.device == "cpu" else "auto"
        words = [*options, "--device", place]
        systems[nodes] = system.measure(words, nodes, settings.concurrency, prompts, ask)
    return systems


def _facts(subject: Subject, settings: Settings, engine: str | None) -> Table:
    import torch
    import transformers

    hardware = "CPU"
    if settings.device != "cpu":
        hardware = torch.cuda.get_device_name(settings.device.split(",")[0])
    name = engine or "transformers"
    facts = {
        "device": f"{settings.device}: {hardware}, {torch.get_num_threads()} threads",
        "torch, transformers": f"{torch.__version__}, {transformers.__version__}",
        **subject.facts,
        "engine": f"{name}, {settings.slots} slots, context {subject.context} tokens",
        "requests": f"{settings.prompt} tokens in, {settings.answer} out, seed {settings.seed}",
    }
    return Table("settings", [{"what": what, "value": value} for what, value in facts.items()])
