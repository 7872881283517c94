"""`bench gpu`: the same requests through the whole system, and to the engine alone, in one run.

First an instance of its own (API, broker, root, one node) with streams over HTTP; when it has ended, the engine by
itself in a process of its own, so that each has the device alone.
"""

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from bench import instance, report
from bench.engine import command as engine
from bench.engine import reading, shapes
from bench.engine.prompts import Prompts
from bench.engine.reading import Ask, Reading
from bench.engine.subject import find_device
from bench.gpu import asking
from bench.instance import Instance, NotStarted
from bench.report import Report, Rows
from cli.home import module_command, module_environment
from worker.models import installed

_WARM_ANSWER = 16  # tokens
_ROW_SECONDS = 300.0
_ENGINE_SECONDS = 1800.0


def command(
    device: Annotated[str, typer.Option(help="cuda, cuda:N, cpu, or auto.")] = "auto",
    model: Annotated[str | None, typer.Option(help="A prepared model's name, or a folder.")] = None,
    random_shape: Annotated[
        str | None, typer.Option("--random-weights", help=f"Instead: {', '.join(shapes.SHAPES)}.")
    ] = None,
    concurrency: Annotated[list[int] | None, typer.Option(min=1, help="Requests at once, repeatable.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    answer: Annotated[int | None, typer.Option(min=2, help="Tokens of each answer; default 256, on a CPU 64.")] = None,
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
    sizes = tuple(concurrency or (engine.CPU_SIZES if place == "cpu" else engine.GPU_SIZES))
    ask = Ask(prompt, answer or (64 if place == "cpu" else 256))
    subject = Random(random_shape) if random_shape is not None else Prepared(installed(str(model)).absolute())
    settings = {"device": place, "model": subject.name, "slots": max(sizes), "concurrency": sizes, "seed": seed}
    result = Report("gpu", {**settings, "prompt": prompt, "answer": ask.answer}, notes=list(_NOTES))
    ours = _system(subject, place, sizes, ask, seed)
    alone = _alone(subject, place, sizes, ask, seed)
    result.tables += [_rates(ours, alone), _delays(ours, alone)]
    result.facts = {"system": {str(size): asdict(each) for size, each in ours.items()}, "engine": alone}
    result.finish(json_file)


_NOTES = (
    "system: streams of /v1/completions over HTTP, API, broker, root and one node on this machine, the load generator "
    "beside them. engine: the same requests through the engine's protocol, in one process.",
    "gap: between two events of one stream. An event may carry several tokens: gaps are longer then.",
)


class Subject(Protocol):
    """What is measured."""

    @property
    def name(self) -> str:
        """For tables."""

    @property
    def node(self) -> list[str]:
        """Options of `up`."""

    @property
    def alone(self) -> list[str]:
        """Options of `bench engine`."""

    def prompts(self, seed: int) -> Prompts:
        """Texts of a known number of tokens."""


@dataclass(frozen=True)
class Random:
    """A shape with random weights; the node makes them when it starts."""

    name: str

    @property
    def node(self) -> list[str]:
        """Options of `up`."""
        return ["--engine", "bench.gpu.engine", "--model", self.name]

    @property
    def alone(self) -> list[str]:
        """Options of `bench engine`."""
        return ["--random-weights", self.name]

    def prompts(self, seed: int) -> Prompts:
        """Texts of a known number of tokens."""
        vocabulary = shapes.config(self.name).vocab_size
        return Prompts(shapes.tokenizer(vocabulary), vocabulary, self.name, seed)


@dataclass(frozen=True)
class Prepared:
    """A model in a folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    @property
    def node(self) -> list[str]:
        """Options of `up`."""
        return ["--engine", "transformers", "--model", str(self.folder)]

    @property
    def alone(self) -> list[str]:
        """Options of `bench engine`."""
        return ["--model", str(self.folder)]

    def prompts(self, seed: int) -> Prompts:
        """Texts of a known number of tokens."""
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False
        )
        return Prompts(tokenizer, len(tokenizer), self.name, seed)


def _system(subject: Subject, device: str, sizes: Sequence[int], ask: Ask, seed: int) -> dict[int, Reading]:
    """A reading a number of requests at once. Raises NotStarted."""
    prompts = subject.prompts(seed)
    options = [*subject.node, "--nodes", "1", "--device", device]
    found = {}
    with instance.running(*options, "--slots", str(max(sizes))) as canopy:
        for size in sizes:
            found[size] = asyncio.run(_measured(canopy, prompts, size, ask))
            report.say(f"system, {size} at once: {found[size].rate:.1f} tok/s, {found[size].failed} failed")
    return found


async def _measured(canopy: Instance, prompts: Prompts, size: int, ask: Ask) -> Reading:
    async with asyncio.timeout(_ROW_SECONDS):
        short = Ask(ask.prompt, min(ask.answer, _WARM_ANSWER))
        await asking.wave(canopy, [prompts.text(ask.prompt) for _ in range(size)], short)
        tracks = await asking.wave(canopy, [prompts.text(ask.prompt) for _ in range(size)], ask)
    for error in sorted({track.error for track in tracks if track.error})[:3]:
        report.say(f"  {error}")
    return reading.read_wave(tracks)


def _alone(subject: Subject, device: str, sizes: Sequence[int], ask: Ask, seed: int) -> dict[str, Any]:
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
                command, env=module_environment(), check=True, stdout=subprocess.DEVNULL, timeout=_ENGINE_SECONDS
            )
            facts = json.loads(file.read_text())["facts"]
        except (subprocess.SubprocessError, OSError) as error:
            raise NotStarted(f"the engine alone was not measured: {error}") from error
    return {str(each["at_once"]): each["reading"] for each in facts["found"]}


def _rates(ours: dict[int, Reading], alone: dict[str, Any]) -> Rows:
    rows = []
    for size, system in ours.items():
        rate = alone.get(str(size), {}).get("rate")
        rows.append((size, system.rate, rate, system.rate / rate if rate else None, system.failed))
    return Rows("tok/s", ("at once", "system", "engine", "system / engine", "failed"), rows)


def _delays(ours: dict[int, Reading], alone: dict[str, Any]) -> Rows:
    rows = []
    for size, system in ours.items():
        for who, each in (("system", asdict(system)), ("engine", alone.get(str(size), {}))):
            spreads = [each.get("ttft") or {}, each.get("gap") or {}]
            rows.append((size, who, *(spread.get(point) for spread in spreads for point in ("p50", "p99", "max"))))
    columns = ("TTFT p50", "TTFT p99", "TTFT max", "gap p50", "gap p99", "gap max")
    return Rows("delays, ms", ("at once", "who", *columns), rows)
