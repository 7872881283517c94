"""The order of work. What fails costs its own row, and a run cut short leaves what it had."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from bench.engine.contender import Contender
from bench.engine.load import LOADS, Lengths, Trial
from bench.engine.prompts import Prompts, Request
from bench.engine.reading import Reading, Result
from bench.report import say
from cli.errors import first_error

_WARM_TOKENS = 16
_START_SECONDS = 900.0
_ROW_SECONDS = 300.0  # after which a row of a contender is lost


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the command; see there."""

    model: str | None
    shape: str | None
    device: str
    concurrency: tuple[int, ...]  # empty: each load's own
    context: int
    tokens: Lengths
    loads: tuple[str, ...]
    peers: tuple[str, ...] = ()
    gguf: str | None = None
    alone: bool = False
    with_system: bool = False
    gpus: int = 1

    def sizes(self, load: str) -> tuple[int, ...]:
        """Requests at once."""
        if self.device == "cpu":
            return self.concurrency or LOADS[load].cpu_sizes
        return self.concurrency or LOADS[load].gpu_sizes

    @property
    def slots(self) -> int:
        """As many as some load needs."""
        most = 0
        for load in self.loads:
            largest = max(self.sizes(load))
            most = max(most, largest + LOADS[load].beside(largest))
        return most


@dataclass
class Record:
    """Results and notes so far; `save` keeps them after each."""

    save: Callable[[], None] = lambda: None
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, load: str, size: int, contender: str, it: Reading) -> None:
        self.results.append(Result(load, size, contender, it))
        name = f"{contender}, {load}, {size} at once"
        if it.rate or it.ttft.count:
            say(f"{name}: {it.rate or 0:.1f} tok/s, TTFT p50 {it.ttft.p50:.0f} ms")
        self.notes += [f"{name}: {error}" for error in it.errors]
        self.save()

    def note(self, line: str) -> None:
        say(line)
        self.notes.append(line)
        self.save()

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[None]:
        """What fails in the block, in whatever way, costs only this row."""
        try:
            yield
        except Exception as error:
            first = first_error(error)
            kind = type(first).__name__
            line = (str(first).strip() or kind).splitlines()[0]
            self.note(f"{name}: failed: {kind}: {line}")


async def measure(contender: Contender, prompts: Prompts, it: Settings, record: Record) -> None:
    """All loads, on a contender that has not been started. Raises EngineUnavailable, NotStarted."""
    async with asyncio.timeout(_START_SECONDS):
        record.note(f"{contender.name}: {await contender.start()}")
    try:
        for name in it.loads:
            for size in it.sizes(name):
                with record.row(f"{contender.name}, {name}, {size} at once"):
                    async with asyncio.timeout(_ROW_SECONDS):
                        trial = Trial(contender, prompts, size, it.tokens)
                        await _measure_load(trial, name, record)
    finally:
        await contender.stop()


async def _measure_load(trial: Trial, name: str, record: Record) -> None:
    load = LOADS[name]
    longest, context = load.longest(trial.tokens), trial.contender.context
    needed = longest.prompt + longest.answer
    if needed > context:
        record.note(f"{name}: left out, it needs {needed} tokens a request, of {context}")
        return
    few = min(longest.answer, _WARM_TOKENS)
    await trial.at_once([replace(longest, answer=few)])
    await trial.at_once([Request(min(trial.tokens.prompt, longest.prompt), few)] * trial.size)
    for part, it in (await load.run(trial, longest)).items():
        record.add(name + part, trial.size, trial.contender.name, it)
