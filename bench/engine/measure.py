"""The order of work: the limit, the engine under every load, then the others with the same model.

What fails costs only its own row. The report is written after each row, so that a run that is cut
short leaves what it had.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from bench.engine import limit, load, reading, tables
from bench.engine.baselines import BASELINES, GENERATE, STATIC
from bench.engine.load import Ask
from bench.engine.prompts import Prompts
from bench.engine.subject import SharedModel, Subject
from bench.engine.tables import ARRIVALS, ENGINE, RAGGED, UNIFORM, ArrivalsResult, Limit, LoadResult
from bench.report import Report, say
from bench.stats import Spread
from bench.timeline import Timeline, first_errors, ttfts
from worker.engines.base import Engine
from worker.engines.transformers.compute_thread import run_in_thread

ENGINE_PART, BASELINES_PART, LIMIT_PART = "engine", "baselines", "limit"
_WARM_ANSWER = 16  # tokens
_START_SECONDS = 600.0
_ROW_SECONDS = 300.0  # after which a row of the engine is lost


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the command; see there."""

    device: str
    slots: int
    concurrency: tuple[int, ...]
    prompt: int
    answer: int
    rows: tuple[str, ...]
    parts: tuple[str, ...]
    baselines: tuple[str, ...]
    rate: float | None
    newcomers: int
    seed: int
    cap: float

    @property
    def is_cpu(self) -> bool:
        return self.device == "cpu"


@dataclass
class Run:
    """One run, and its results so far."""

    settings: Settings
    subject: Subject
    report: Report
    file: Path | None
    results: list[LoadResult] = field(default_factory=list)
    arrivals: list[ArrivalsResult] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)

    def run(self, engine_name: str | None) -> None:
        """Everything that was asked for.

        Each part has a thread of its own: what one leaves behind of OpenMP's threads must not slow
        the next one down.
        """
        parts = self.settings.parts
        if LIMIT_PART in parts:  # first: the largest copy needs memory that others would keep
            with self._row("the bandwidth's limit"):
                run_in_thread(self._measure_limit)
        if ENGINE_PART in parts:
            with self._row("the engine"):
                run_in_thread(partial(asyncio.run, self._measure_engine(engine_name)))
        self.subject.clean_up()
        if BASELINES_PART in parts:
            run_in_thread(self._measure_baselines)
        self._save()

    def _asks(self, kind: str, concurrency: int) -> list[Ask]:
        """The requests of a load, the same for everybody."""
        it = self.settings
        if kind == UNIFORM:
            return load.uniform(concurrency, it.prompt, it.answer)
        requests = concurrency * (2 if it.is_cpu else 4)
        return load.ragged(requests, self.subject.context, it.seed, it.rate)

    def _loads(self) -> list[tuple[str, int]]:
        kinds = [kind for kind in (UNIFORM, RAGGED) if kind in self.settings.rows]
        return [(kind, concurrency) for kind in kinds for concurrency in self.settings.concurrency]

    def _measure_limit(self) -> None:
        subject = self.subject
        assert isinstance(subject, SharedModel)  # noqa: S101 - the command checks that
        speed = limit.bandwidth(self.settings.device)
        for kind, concurrency in self._loads():
            context = reading.mean_context(self._asks(kind, concurrency))
            weights, kv = subject.reads.weights, subject.reads.kv(concurrency, context)
            self.limits.append(Limit(kind, concurrency, context, weights, kv, speed))
        subject.clean_up()
        say(f"bandwidth: {speed / 1e9:.0f} GB/s, read and written")
        self._save()

    async def _measure_engine(self, name: str | None) -> None:
        it, subject = self.settings, self.subject
        engine = subject.engine(name, it.device, it.slots)
        prompts = subject.prompts(it.seed)
        began = time.perf_counter()
        async with asyncio.timeout(_START_SECONDS):
            await engine.start()
        seconds = time.perf_counter() - began
        say(f"engine: started in {seconds:.1f} s")
        start = {"seconds": seconds, "precision": subject.precision, "context": subject.context}
        self.report.facts["start"] = start
        if subject.precision:
            self._note(f"the engine computes in {subject.precision}; others in the dtype above")
        try:
            for kind, concurrency in self._loads():
                await self._measure_load(engine, prompts, kind, concurrency)
            if ARRIVALS in it.rows:
                for concurrency in it.concurrency:
                    for newcomer in (it.prompt, 8 * it.prompt):
                        await self._measure_arrivals(engine, prompts, concurrency, newcomer)
        finally:
            await engine.stop()
        if engine.stuck:
            self._note("the engine could not be stopped, and shared the device with what followed")

    async def _measure_load(
        self, engine: Engine, prompts: Prompts, kind: str, concurrency: int
    ) -> None:
        it = self.settings
        asks = self._asks(kind, concurrency)
        warm_up = [Ask(ask.prompt, min(ask.answer, _WARM_ANSWER)) for ask in asks[:concurrency]]
        with self._row(f"{ENGINE}, {kind}, concurrency {concurrency}"):
            async with asyncio.timeout(_ROW_SECONDS):
                await load.run_load(engine, prompts, warm_up, concurrency)
                timelines = await load.run_load(engine, prompts, asks, concurrency)
            self._add(kind, ENGINE, concurrency, timelines, steady=kind == RAGGED and not it.rate)

    async def _measure_arrivals(
        self, engine: Engine, prompts: Prompts, concurrency: int, prompt: int
    ) -> None:
        it = self.settings
        streams = min(concurrency, it.slots - 1)
        name = f"{prompt} tokens arrive beside {streams} streams"
        if streams < 1 or self.subject.context < max(prompt, it.prompt) + it.answer:
            self._note(f"{name}: left out, it needs one more slot or a longer context")
            return
        long_answer = Ask(it.prompt, self.subject.context - it.prompt - 1)
        newcomer = Ask(prompt, load.NEWCOMER_ANSWER)
        with self._row(name):
            async with asyncio.timeout(_ROW_SECONDS):
                arrivals = await load.run_arrivals(
                    engine, prompts, long_answer, streams, newcomer, it.newcomers, it.seed
                )
            result = ArrivalsResult(
                streams=streams,
                prompt=prompt,
                newcomers=sum(not timeline.error for timeline in arrivals.newcomers),
                ttft=Spread.of(ttfts(arrivals.newcomers), 1000),
                quiet_gap=Spread.of(reading.quiet_gaps(arrivals), 1000),
                pause=Spread.of(reading.pauses(arrivals), 1000),
            )
            self.arrivals.append(result)
            say(f"{name}: TTFT p50 {result.ttft.p50:.0f} ms, pause p99 {result.pause.p99:.0f} ms")
            self._save()

    def _measure_baselines(self) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()  # no end token, it warns: as intended
        prompts = self.subject.prompts(self.settings.seed)
        for name in self.settings.baselines:
            for kind, concurrency in self._loads():
                if name == GENERATE and (kind != UNIFORM or concurrency > 1):
                    continue
                if name == STATIC and concurrency == 1 and GENERATE in self.settings.baselines:
                    continue  # the same as `generate`
                self._measure_baseline(prompts, kind, name, concurrency)
                self.subject.clean_up()

    def _measure_baseline(self, prompts: Prompts, kind: str, name: str, concurrency: int) -> None:
        subject, cap = self.subject, self.settings.cap
        assert isinstance(subject, SharedModel)  # noqa: S101 - the command checks that
        asks = self._asks(kind, concurrency)
        row = f"{name}, {kind}, concurrency {concurrency}"
        with self._row(row):
            ids = [prompts.ids(prompts.text(ask.prompt)) for ask in asks]
            timelines = BASELINES[name](subject.model, asks, ids, concurrency, cap)
            tokens = sum(timeline.tokens for timeline in timelines)
            asked = sum(ask.answer for ask in asks)
            if tokens < asked:
                self._note(f"{row}: cut short by --cap: {tokens} of {asked} tokens")
            # `generate` refills no slots; a load that was cut short may not have begun them all.
            steady = kind == RAGGED and name not in (GENERATE, STATIC) and tokens >= asked
            if timelines:
                self._add(kind, name, concurrency, timelines, steady=steady)

    def _add(
        self,
        kind: str,
        contender: str,
        concurrency: int,
        timelines: list[Timeline],
        *,
        steady: bool,
    ) -> None:
        it = reading.read(timelines, steady=steady)
        self.results.append(LoadResult(kind, contender, concurrency, it))
        name = f"{contender}, {kind}, concurrency {concurrency}"
        for error in first_errors(timelines):
            self._note(f"{name}: {error}")
        say(f"{name}: {it.rate:.1f} tok/s, TTFT p50 {it.ttft.p50:.0f} ms")
        self._save()

    @contextlib.contextmanager
    def _row(self, name: str) -> Iterator[None]:
        """What fails in the block, in whatever way, costs only this row."""
        try:
            yield
        except Exception as error:
            cause: BaseException = error
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            self._note(f"{name}: failed: {type(cause).__name__}: {line}")

    def _note(self, line: str) -> None:
        say(line)
        self.report.notes.append(line)
        self._save()

    def _save(self) -> None:
        pace = f"{self.settings.rate:g} requests/s" if self.settings.rate else "closed loop"
        self.report.tables[1:] = [
            tables.load_table(UNIFORM, "all at once, equal lengths; times in ms", self.results),
            tables.load_table(RAGGED, f"ragged lengths, {pace}; times in ms", self.results),
            tables.arrivals_table(self.arrivals),
            tables.limit_table(self.limits),
            tables.ratio_table(self.results, self.limits),
        ]
        self.report.facts["results"] = [asdict(result) for result in self.results]
        self.report.facts["arrivals"] = [asdict(result) for result in self.arrivals]
        self.report.facts["limits"] = [asdict(bound) for bound in self.limits]
        if self.file is not None:
            self.report.write(self.file)
