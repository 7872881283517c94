"""The order of work. What fails costs its own row, and a run cut short leaves what it had."""

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench.engine import load, reading, subject, yardsticks
from bench.engine.load import ARRIVALS, RAGGED, UNIFORM
from bench.engine.prompts import Prompts, Request
from bench.engine.reading import ENGINE, GENERATE, LIMIT, Reading, Result, result_table
from bench.engine.subject import Subject
from bench.report import Report, say
from bench.timeline import Timeline, first_errors
from cli.errors import first_error
from worker.engines.base import Engine
from worker.engines.transformers.compute_thread import run_in_thread

_WARM_TOKENS = 16
_START_SECONDS = 600.0
_ROW_SECONDS = 300.0  # after which a row of the engine is lost
_GENERATE_SECONDS = 30.0  # after which what it has made counts


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the command; see there."""

    model: str | None
    shape: str | None
    device: str
    concurrency: tuple[int, ...]
    context: int
    prompt: int
    answer: int
    loads: tuple[str, ...]
    alone: bool
    with_system: bool
    gpus: int


@dataclass
class Run:
    """One run, and its results so far."""

    settings: Settings
    subject: Subject
    report: Report
    file: Path | None = None
    results: list[Result] = field(default_factory=list)

    def run(self) -> None:
        """The engine comes last, because it changes the model."""
        # a thread each: what one part leaves of OpenMP's threads must not slow the next one down
        if UNIFORM in self.settings.loads:
            with self._row(LIMIT):
                run_in_thread(self._measure_limit)
            if not (self.settings.alone or self.settings.with_system):
                run_in_thread(self._measure_generate)
        with self._row(ENGINE):
            run_in_thread(self._measure_engine)
        self._save()

    def _measure_limit(self) -> None:
        it, model = self.settings, self.subject.model
        speed = yardsticks.bandwidth(it.device)
        weights = yardsticks.weight_bytes(model)
        self._note(f"limit: {weights / 1e9:.3f} GB of weights, copies {speed / 1e9:.0f} GB/s")
        config, context = model.config.get_text_config(), it.prompt + it.answer / 2
        row = yardsticks.kv_bytes(config, model.dtype.itemsize, context)
        for size in it.concurrency:
            self._add(UNIFORM, size, LIMIT, Reading(step_ms=1000 * (weights + size * row) / speed))

    def _measure_generate(self) -> None:
        import torch

        it, model = self.settings, self.subject.model
        prompts = Prompts(self.subject.tokenizer, self.subject.name)
        for size in it.concurrency:
            requests = [Request(it.prompt, it.answer)] * size
            name = f"{GENERATE}, {size} at once"
            with self._row(name):
                ids = [prompts.ids(text) for text in prompts.texts(requests)]
                yardsticks.generate(model, ids, _WARM_TOKENS, _GENERATE_SECONDS)
                timelines = yardsticks.generate(model, ids, it.answer, _GENERATE_SECONDS)
                if timelines[0].tokens < it.answer:
                    self._note(f"{name}: cut short after {timelines[0].tokens} tokens each")
                self._add(UNIFORM, size, GENERATE, reading.read(timelines, size * it.prompt))
            gc.collect()
            torch.cuda.empty_cache()  # for what follows; nothing without a GPU

    def _measure_engine(self) -> None:
        it, slots = self.subject, max(self.settings.concurrency)
        engine = subject.engine(it.name, self.settings.device, slots, it.load)
        asyncio.run(self.measure_engine(engine))

    async def measure_engine(self, engine: Engine) -> None:
        """All loads on an engine that has not been started. Raises EngineUnavailable."""
        began = time.perf_counter()
        async with asyncio.timeout(_START_SECONDS):
            await engine.start()
        note = f"engine: ready after {time.perf_counter() - began:.1f} s, "
        note += f"{engine.slots} slots of {engine.context_length} tokens"
        if self.subject.precision:
            note += f", computes in {self.subject.precision}"
        self._note(note)
        prompts = Prompts(self.subject.tokenizer, self.subject.name)
        try:
            for kind in self.settings.loads:
                for size in self.settings.concurrency:
                    with self._row(f"{ENGINE}, {kind}, {size} at once"):
                        async with asyncio.timeout(_ROW_SECONDS):
                            await self._measure_load(engine, prompts, kind, size)
        finally:
            await engine.stop()

    async def _measure_load(self, engine: Engine, prompts: Prompts, kind: str, size: int) -> None:
        it, context = self.settings, engine.context_length
        requests = load.requests_of(kind, size, it.prompt, it.answer, context)
        needed = max(request.prompt + request.answer for request in requests)
        if needed > context:
            self._note(f"{kind}: left out, it needs {needed} tokens a slot")
            return
        if kind == ARRIVALS and size == 1:  # nothing is left for a newcomer
            return
        first = requests[:size]
        warm_up = [replace(it, answer=min(it.answer, _WARM_TOKENS)) for it in first]
        await load.run_load(engine, prompts.jobs(warm_up), size)
        timelines = await load.run_load(engine, prompts.jobs(requests), size)
        if kind == ARRIVALS:
            result = reading.read_arrivals(timelines[: size - 1], timelines[size - 1 :])
        else:
            tokens = sum(request.prompt for request in requests)
            result = reading.read(timelines, tokens, closed_loop=kind == RAGGED)
        self._add(kind, size, ENGINE, result, timelines)

    def _add(
        self, kind: str, size: int, contender: str, it: Reading, timelines: Sequence[Timeline] = ()
    ) -> None:
        name = f"{contender}, {kind}, {size} at once"
        self.results.append(Result(kind, size, contender, it))
        for error in first_errors(timelines):
            self._note(f"{name}: {error}")
        if it.rate or it.ttft.count:
            say(f"{name}: {it.rate or 0:.1f} tok/s, TTFT p50 {it.ttft.p50:.0f} ms")
        self._save()

    @contextlib.contextmanager
    def _row(self, name: str) -> Iterator[None]:
        """What fails in the block, in whatever way, costs only this row."""
        try:
            yield
        except Exception as error:
            first = first_error(error)
            kind = type(first).__name__
            line = (str(first).strip() or kind).splitlines()[0]
            self._note(f"{name}: failed: {kind}: {line}")

    def _note(self, line: str) -> None:
        say(line)
        self.report.notes.append(line)
        self._save()

    def _save(self) -> None:
        self.report.tables = [result_table(self.results)]
        self.report.facts["results"] = [asdict(result) for result in self.results]
        if self.file is not None:
            self.report.write(self.file)
