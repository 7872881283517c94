"""`bench engine`: see the package."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from bench import report
from bench.engine import shapes
from bench.engine.baselines import BASELINES, DEFAULTS
from bench.engine.measure import BASELINES_PART, ENGINE_PART, LIMIT_PART, Run, Settings, say
from bench.engine.subject import Divided, Subject, find_device, from_folder, random_weights
from bench.engine.table import ARRIVALS, RAGGED, UNIFORM
from bench.report import Report, Rows
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.compute_thread import apart

ROWS = (UNIFORM, RAGGED, ARRIVALS)
PARTS = (ENGINE_PART, BASELINES_PART, LIMIT_PART)
GPU_SIZES, CPU_SIZES = (1, 8, 32, 128, 256), (1, 4, 16)


def command(
    device: Annotated[
        str,
        typer.Option(help="cuda, cuda:N, cpu, or auto; cuda:0,cuda:1: layers over both (--model)."),
    ] = "auto",
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="Processes that divide the model (--model).")
    ] = 1,
    model: Annotated[str | None, typer.Option(help="A prepared model's name, or a folder.")] = None,
    random_shape: Annotated[
        str | None, typer.Option("--random-weights", help=f"Instead: {', '.join(shapes.SHAPES)}.")
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests at once, repeatable.")
    ] = None,
    baseline_concurrency: Annotated[
        list[int] | None,
        typer.Option(min=1, help="The same for the baselines, repeatable; default: as above."),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Of the engine; default: the largest concurrency.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=16, help="Tokens a slot; default: as the loader chooses.")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    answer: Annotated[
        int | None, typer.Option(min=2, help="Tokens of each answer; default 256, on a CPU 64.")
    ] = None,
    ragged: Annotated[bool, typer.Option(help="Also lengths of a published trace.")] = True,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Ragged: requests a second (Poisson) instead of a closed loop."
        ),
    ] = None,
    requests_a_place: Annotated[
        int | None, typer.Option(min=2, help="Ragged: requests = this x concurrency.")
    ] = None,
    newcomers: Annotated[
        int | None, typer.Option(min=1, help="Requests that arrive while others decode.")
    ] = None,
    arriving: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens of the newcomers' prompts, repeatable.")
    ] = None,
    baselines: Annotated[str, typer.Option(help=f"Of {', '.join(BASELINES)}; or none.")] = ",".join(
        DEFAULTS
    ),
    only: Annotated[str, typer.Option(help=f"Parts: {', '.join(PARTS)}.")] = ",".join(PARTS),
    rows: Annotated[str, typer.Option(help=f"Loads: {', '.join(ROWS)}.")] = ",".join(ROWS),
    engine: Annotated[
        str | None, typer.Option(help="Another engine: a name, or a module's dotted path.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of the engine's requests; 0: greedy.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of lengths, words and arrivals.")] = 1,
    cap: Annotated[
        float, typer.Option(min=1, help="Seconds that a row of a baseline may take.")
    ] = 30.0,
    row_seconds: Annotated[
        float, typer.Option(min=1, help="Seconds after which a row of the engine is lost.")
    ] = 300.0,
    budget: Annotated[
        float, typer.Option(min=1, help="Seconds for everything; what begins later is left out.")
    ] = 3600,
    json_file: report.JsonOption = None,
) -> None:
    """The speed of an engine alone: tokens a second and their delays, beside transformers and the memory's limit."""
    place = find_device(device)
    divided = tensor_parallel > 1 or "," in place
    if divided and (model is None or context or engine):
        raise typer.BadParameter(
            "what is divided is a --model, without --context or --engine", param_hint="--model"
        )
    sizes = tuple(concurrency or (CPU_SIZES if place == "cpu" else GPU_SIZES))
    wanted = tuple(each for each in _named(rows, ROWS, "--rows") if ragged or each != RAGGED)
    asked = Settings(
        device=place,
        slots=slots or max(sizes),
        concurrency=sizes,
        baseline_concurrency=tuple(baseline_concurrency or sizes),
        prompt=prompt,
        answer=answer or (64 if place == "cpu" else 256),
        rows=wanted,
        parts=(ENGINE_PART,) if divided else _named(only, PARTS, "--only"),
        baselines=() if baselines == "none" else _named(baselines, BASELINES, "--baselines"),
        rate=rate,
        requests_a_place=requests_a_place or (2 if place == "cpu" else 4),
        newcomers=newcomers or (5 if place == "cpu" else 20),
        arriving=tuple(arriving or (prompt, 8 * prompt)),
        temperature=temperature,
        seed=seed,
        cap=cap,
        row_seconds=row_seconds,
        budget=budget,
    )
    if max(sizes) > asked.slots:
        raise typer.BadParameter(
            f"{max(sizes)} requests at once need as many slots", param_hint="--slots"
        )
    try:
        subject = apart(lambda: _subject(model, random_shape, asked, context, tensor_parallel))
    except EngineUnavailable as error:
        say(str(error))
        raise typer.Exit(1) from error
    longest = subject.context
    if prompt + asked.answer > longest:
        raise typer.BadParameter(
            f"prompt and answer do not fit into {longest} tokens", param_hint="--answer"
        )
    settings = asdict(asked) | {
        "engine": engine or "transformers",
        "model": subject.name,
        "processes": tensor_parallel,
    }
    notes = [*_NOTES, _ALONE] if divided else list(_NOTES)
    result = Report("engine", settings, tables=[_facts(subject, asked, engine)], notes=notes)
    Run(asked, subject, result, json_file).run(engine)
    result.finish(json_file)


_NOTES = (
    "engine: through its protocol, in this process; a request's TTFT is until its first chunk with a token. gap: "
    "between two chunks of one answer.",
    "tok/s: answers' tokens over the whole time, the reading of the prompts included. A ragged closed loop counts "
    "until the last request begins. ms a step: while all rows decode.",
    "generate: one request at a time; static: `generate` for all, padded; continuous: transformers' own continuous "
    "batching with its defaults (on a CPU with less memory), warmed up. All use the same weights, one after the other, "
    "for at most --cap each.",
    "ragged: lengths of answers of a published trace; prompts are drawn from the same quantiles.",
    "pause: of every running stream the longest gap between a newcomer's request and its first token.",
    "limit: all weights and all rows' keys and values, read once a step, over the speed of a large copy.",
)

_ALONE = (
    "baselines and the limit are left out: they need the whole model on one device. The context above is the model's "
    "own: the engine takes what it finds room for."
)


def _subject(
    model: str | None, shape: str | None, asked: Settings, context: int | None, ranks: int
) -> Subject:
    if (model is None) == (shape is None):
        raise typer.BadParameter("name one: --model or --random-weights")
    if shape is not None:
        _named(shape, shapes.SHAPES, "--random-weights")
        say(f"making {shape} on {asked.device}")
        return random_weights(shape, asked.device, asked.slots, context)
    from worker.models import installed

    assert model is not None  # noqa: S101 - one of the two is named
    if ranks > 1 or "," in asked.device:
        return Divided(installed(model), ranks)
    return from_folder(installed(model), asked.device, asked.slots, context)


def _facts(subject: Subject, asked: Settings, engine: str | None) -> Rows:
    import torch
    import transformers

    gpu = torch.cuda.get_device_name(asked.device.split(",")[0]) if asked.device != "cpu" else "CPU"
    rows = [
        ("device", f"{asked.device}: {gpu}, {torch.get_num_threads()} threads"),
        ("torch, transformers", f"{torch.__version__}, {transformers.__version__}"),
        *subject.facts,
        (
            "engine",
            f"{engine or 'transformers'}, {asked.slots} slots, context {subject.context} tokens",
        ),
        ("requests", f"{asked.prompt} tokens in, {asked.answer} out, seed {asked.seed}"),
    ]
    return Rows("settings", ("what", "value"), rows)


def _named(text: str, known: Collection[str], option: str) -> tuple[str, ...]:
    found: Sequence[str] = [each.strip() for each in text.split(",")]
    if unknown := [each for each in found if each not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint=option)
    return tuple(found)
