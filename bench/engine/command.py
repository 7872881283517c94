"""`bench engine`: in this process, through its protocol; `--system`: behind the service, too."""

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from bench import options
from bench.engine import measure, peers, shapes, subject, yardsticks
from bench.engine.contender import CanopyEngine
from bench.engine.load import LOADS, SUMMARIES, UNIFORM, Lengths
from bench.engine.measure import Record, Settings
from bench.engine.prompts import Prompts, Request
from bench.engine.reading import LIMIT, Result, result_table
from bench.engine.subject import Subject
from bench.errors import NotStarted
from bench.report import Report
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.compute_thread import run_in_thread
from worker.models import installed

_GPU_CONTEXT, _CPU_CONTEXT = 8192, 2048
_CPU_SCALE = 0.25

_NOTES = (
    "limit: weights, keys and values read once a step, at the speed of a copy. generate: "
    "transformers' own, one batch. vllm and llama.cpp get token ids; vllm streams only where that "
    "is measured.",
    "tok/s: of answers, prompts' time included; engine / it: by tok/s, of the limit by steps. ms a "
    "step, host % (processor time of the decoding thread): while all decode. prompt tok/s: until "
    "the last first token. arrivals, burst: TTFT of the newcomers; gaps of the streams meanwhile.",
)
_SYSTEM_NOTE = (
    "system: engine / it is of as many engines as nodes. cores: of each process; load generator, "
    "API and root have one each, and near 1.0 they bound the rest."
)


def _loads_help() -> str:
    """The loads as a paragraph that click leaves as it is."""
    lines = ["\b", "Loads, and how many at once on a GPU, on a CPU:"]
    for name, load in LOADS.items():
        lines += [f"  {name}: {load.gpu_sizes}, {load.cpu_sizes}", f"    {SUMMARIES[name]}"]
    return "\n".join(lines)


@click.command(epilog=_loads_help())
@click.option("--model", help="A prepared model's name, or a folder.")
@click.option(
    "--random-weights",
    "shape",
    type=click.Choice(shapes.SHAPES),
    help="Instead: a model of this shape.",
)
@click.option("--device", default="auto", help="cpu, cuda, cuda:N, auto.")
@click.option("--concurrency", type=options.COUNT, multiple=True, help="Of every load; repeatable.")
@click.option("--context", type=options.COUNT, help="Tokens a request: 8192, or 2048 on a CPU.")
@click.option(
    "--scale",
    type=click.FloatRange(min=0.001, max=16),
    help="All lengths below, times this: 1, or 0.25 on a CPU.",
)
@click.option("--prompt", type=options.COUNT, help="Tokens in, of the uniform load alone.")
@click.option("--answer", type=click.IntRange(min=2), help="Tokens out, of the uniform load alone.")
@click.option("--load", "loads", type=click.Choice(LOADS), multiple=True, help="Only; repeatable.")
@click.option(
    "--peer",
    "peers",
    type=click.Choice(peers.PEERS),
    multiple=True,
    help="Beside it, in the same run, if its package is installed; repeatable.",
)
@click.option("--gguf", help="File for llama.cpp; a packaged model's own is downloaded.")
@click.option("--alone", is_flag=True, help="Without transformers' generate.")
@click.option("--system", "with_system", is_flag=True, help="API, broker and tree around it, too.")
@click.option(
    "--gpus", type=options.COUNT, default=1, help="--system: also so many nodes, a GPU each."
)
@options.json_file
def command(json_file: Path | None, **options: Any) -> None:
    """Tokens a second of an engine and their delays, beside transformers, the memory's limit, vLLM
    and llama.cpp.

    \b
    bench engine --random-weights llama-3-8b --alone --peer vllm --json engine.json
    bench engine --model smollm2-135m-instruct --load uniform --peer llama.cpp
    bench engine --random-weights tiny --device cpu --scale 0.05
    """
    for peer in options["peers"]:
        peers.check(peer)
    settings = _settings(**options)
    report = Report("engine", asdict(settings))

    def save() -> None:
        """After each row, so that a run cut short leaves what it had."""
        report.tables = [result_table(record.results)]
        report.facts["results"] = [asdict(result) for result in record.results]
        if json_file is not None:
            report.write(json_file)

    record = Record(save, notes=report.notes)
    try:
        _measure(settings, record)
    except EngineUnavailable as error:
        raise NotStarted(str(error)) from error
    report.notes += _NOTES
    if settings.with_system:
        report.notes.append(_SYSTEM_NOTE)
    report.finish(json_file)


def _settings(**options: Any) -> Settings:
    """With what is usual on the device. Raises EngineUnavailable, click.BadParameter."""
    from worker.engines.transformers.model.placement import find_device

    options["device"] = device = str(find_device(options["device"]))
    on_cpu = device == "cpu"
    options["context"] = options["context"] or (_CPU_CONTEXT if on_cpu else _GPU_CONTEXT)
    tokens = Lengths().times(options.pop("scale") or (_CPU_SCALE if on_cpu else 1.0))
    named = {name: options.pop(name) for name in ("prompt", "answer")}
    tokens = replace(tokens, **{name: value for name, value in named.items() if value})
    options["loads"] = options["loads"] or tuple(LOADS)
    if options["with_system"]:
        options["loads"] = (UNIFORM,)
    settings = Settings(tokens=tokens, **options)
    if (settings.model is None) == (settings.shape is None):
        raise click.BadParameter("name one: --model or --random-weights")
    if tokens.prompt + tokens.answer > settings.context:
        raise click.BadParameter("prompt and answer do not fit into it", param_hint="--context")
    return settings


def _measure(it: Settings, record: Record) -> None:
    """The peers first: a GPU has no room for two. The engine comes last: it changes the model.

    Raises EngineUnavailable.
    """
    if it.with_system:
        record.results += _measure_systems(it)
    for peer in it.peers:
        peers.run(peer, it, record)
    it_is = run_in_thread(lambda: _subject(it))
    record.notes[:0] = _facts(it_is, it)
    # a thread each: what one part leaves of OpenMP's threads must not slow the next one down
    if UNIFORM in it.loads:
        with record.row(LIMIT):
            run_in_thread(lambda: yardsticks.measure_limit(it_is.model, it, record))
        if not (it.alone or it.with_system):
            prompts = Prompts(it_is.tokenizer)
            run_in_thread(lambda: yardsticks.measure_generate(it_is.model, prompts, it, record))
    with record.row(CanopyEngine.name):
        engine = subject.engine(it_is.name, it.device, it.slots, it_is.load)
        prompts = Prompts(it_is.tokenizer)
        work = measure.measure(CanopyEngine(engine), prompts, it, record)
        run_in_thread(lambda: asyncio.run(work))
        if it_is.precision:
            record.note(f"engine: computed in {it_is.precision}")


def _subject(settings: Settings) -> Subject:
    if settings.model is None:
        return subject.random_weights(str(settings.shape), settings.device, settings.context)
    return subject.from_folder(installed(settings.model), settings.device, settings.context)


def _measure_systems(settings: Settings) -> list[Result]:
    """Several nodes take the GPUs in turn."""
    from bench.engine import system  # with Canopy's other rooms, which `bench.engine` may lack
    from cli.prepare import gpus as machine

    device, gpus = settings.device, settings.gpus
    if gpus > 1 and device != "cpu" and gpus > machine.count():
        raise click.BadParameter(f"this machine has {machine.count()}", param_hint="--gpus")
    words = ["--engine", "bench.engine.subject", "--model", str(settings.shape)]
    if settings.model is not None:
        words = ["--engine", "transformers", "--model", str(installed(settings.model))]
    prompts = Prompts(subject.tokenizer(settings.model, settings.shape))
    request = Request(settings.tokens.prompt, settings.tokens.answer)
    results = []
    for nodes in sorted({1, gpus}):
        if nodes > 1 and device != "cpu":
            device = "auto"
        placed = [*words, "--device", device]
        results += system.measure(placed, nodes, settings.sizes(UNIFORM), prompts, request)
    return results


def _facts(measured: Subject, settings: Settings) -> list[str]:
    import torch

    hardware = f"CPU, {torch.get_num_threads()} threads"
    if settings.device != "cpu":
        hardware = torch.cuda.get_device_name(settings.device)
    millions = sum(weight.numel() for weight in measured.model.parameters()) / 1e6
    return [
        f"{measured.name}: {millions:,.1f} M parameters, {measured.model.dtype}; "
        f"uniform: {settings.tokens.prompt} tokens in, {settings.tokens.answer} out",
        f"{settings.device}: {hardware}; torch {torch.__version__}",
    ]
