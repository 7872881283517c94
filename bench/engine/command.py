"""`bench engine`: in this process, through its protocol; `--system`: behind the service, too."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bench import options
from bench.engine import shapes, subject
from bench.engine.load import LOADS, UNIFORM
from bench.engine.measure import Run, Settings
from bench.engine.prompts import Prompts, Request
from bench.engine.reading import Result
from bench.engine.subject import Subject
from bench.errors import NotStarted
from bench.report import Report
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.compute_thread import run_in_thread
from worker.models import installed

_GPU_SIZES: tuple[int, ...] = (1, 8, 32, 128, 256)
_CPU_SIZES: tuple[int, ...] = (1, 4, 16)
_GPU_ANSWER, _CPU_ANSWER = 256, 64

_NOTES = (
    "engine: through its protocol, in this process. generate: transformers' own, one padded batch. "
    "limit: weights, keys and values read once a step, at the speed of a copy.",
    "tok/s: of answers, prompts' time included; engine / it: by tok/s, of the limit by steps. ms a "
    "step: while all decode. prompt tok/s: until the last first token.",
    "ragged: a closed loop with lengths of a published trace, until its last request begins. "
    "prefix: prompts that share all but their end. prompts: long ones, few tokens out. arrivals: "
    "TTFT of newcomers with long prompts; gaps of the streams that decode meanwhile.",
)
_SYSTEM_NOTE = (
    "system: streams of /v1/completions through API, broker, root and nodes on this machine; "
    "engine / it: as many engines as nodes. cores: of each process. The load generator (load), "
    "API and root compute on one each: near 1.0 they bound the rest. Nodes on one CPU share its "
    "cores: there the ratio says nothing."
)


@click.command
@click.option("--model", help="A prepared model's name, or a folder.")
@click.option(
    "--random-weights",
    "shape",
    type=click.Choice(shapes.SHAPES),
    help="Instead: a model of this shape.",
)
@click.option("--device", default="auto", help="cpu, cuda, cuda:N, auto.")
@click.option(
    "--concurrency", type=options.COUNT, multiple=True, help="Requests at once; repeatable."
)
@click.option("--context", type=options.COUNT, default=2048, help="Tokens a slot, at most.")
@click.option(
    "--prompt", type=options.COUNT, default=128, help="Tokens of a prompt; a long one: x 8."
)
@click.option("--answer", type=click.IntRange(min=2), help="Tokens: 256, or 64 on a CPU.")
@click.option("--load", "loads", type=click.Choice(LOADS), multiple=True, help="Only; repeatable.")
@click.option("--alone", is_flag=True, help="Without transformers' generate.")
@click.option("--system", "with_system", is_flag=True, help="API, broker and tree around it, too.")
@click.option(
    "--gpus", type=options.COUNT, default=1, help="--system: also so many nodes, a GPU each."
)
@options.json_file
def command(json_file: Path | None, **options: Any) -> None:
    """Tokens a second of an engine and their delays, beside transformers and the memory's limit."""
    try:
        settings = _settings(**options)
        result = Report("engine", asdict(settings))
        results = _measure_systems(settings)
        measured = run_in_thread(lambda: _subject(settings))
    except EngineUnavailable as error:
        raise NotStarted(str(error)) from error
    Run(settings, measured, result, json_file, results).run()
    result.notes = _facts(measured, settings) + result.notes + list(_NOTES)
    if settings.with_system:
        result.notes.append(_SYSTEM_NOTE)
    result.finish(json_file)


def _settings(**options: Any) -> Settings:
    """With what is usual on the device. Raises EngineUnavailable, click.BadParameter."""
    from worker.engines.transformers.model.placement import find_device

    sizes, answer = _GPU_SIZES, _GPU_ANSWER
    options["device"] = str(find_device(options["device"]))
    if options["device"] == "cpu":
        sizes, answer = _CPU_SIZES, _CPU_ANSWER
    options["concurrency"] = options["concurrency"] or sizes
    options["answer"] = options["answer"] or answer
    options["loads"] = options["loads"] or LOADS
    if options["with_system"]:
        options["loads"] = (UNIFORM,)
    settings = Settings(**options)
    if (settings.model is None) == (settings.shape is None):
        raise click.BadParameter("name one: --model or --random-weights")
    if settings.prompt + settings.answer > settings.context:
        raise click.BadParameter("prompt and answer do not fit into it", param_hint="--context")
    return settings


def _subject(settings: Settings) -> Subject:
    if settings.model is None:
        return subject.random_weights(str(settings.shape), settings.device, settings.context)
    return subject.from_folder(installed(settings.model), settings.device, settings.context)


def _measure_systems(settings: Settings) -> list[Result]:
    """Several nodes take the GPUs in turn."""
    if not settings.with_system:
        return []
    from bench.engine import system  # with Canopy's other rooms, which `bench.engine` may lack
    from cli.prepare import gpus as machine
    from worker.engines.transformers.model import loader

    device, gpus = settings.device, settings.gpus
    if gpus > 1 and device != "cpu" and gpus > machine.count():
        raise click.BadParameter(f"this machine has {machine.count()}", param_hint="--gpus")
    if settings.model is None:
        shape = str(settings.shape)
        tokenizer = shapes.tokenizer(shapes.config(shape).vocab_size)
        engine = ["--engine", "bench.engine.subject", "--model", shape]
    else:
        folder = installed(settings.model)
        tokenizer = loader.load_tokenizer(folder)
        engine = ["--engine", "transformers", "--model", str(folder)]
    prompts = Prompts(tokenizer, "")
    request = Request(settings.prompt, settings.answer)
    results = []
    for nodes in sorted({1, gpus}):
        if nodes > 1 and device != "cpu":
            device = "auto"
        words = [*engine, "--device", device]
        results += system.measure(words, nodes, settings.concurrency, prompts, request)
    return results


def _facts(measured: Subject, settings: Settings) -> list[str]:
    import torch

    hardware = f"CPU, {torch.get_num_threads()} threads"
    if settings.device != "cpu":
        hardware = torch.cuda.get_device_name(settings.device)
    millions = sum(weight.numel() for weight in measured.model.parameters()) / 1e6
    return [
        f"{measured.name}: {millions:,.1f} M parameters, {measured.model.dtype}; "
        f"{settings.prompt} tokens in, {settings.answer} out",
        f"{settings.device}: {hardware}; torch {torch.__version__}",
    ]
