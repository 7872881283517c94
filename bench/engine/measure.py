"""The order of work: the engine under every load, then the others with the same model, then the memory's limit.

What fails costs only its own row, and the report is written after each, so that a run that is cut short leaves what it
had.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.engine import continuous, limit, load, reading, table
from bench.engine.baselines import BASELINES
from bench.engine.prompts import Prompts
from bench.engine.reading import Ask, Reading, Spread, Track
from bench.engine.subject import Shared, Subject
from bench.engine.table import (
    ARRIVALS,
    CONTINUOUS,
    ENGINE,
    ONE_BY_ONE,
    RAGGED,
    UNIFORM,
    Bound,
    Disturbed,
    Found,
)
from bench.report import Report, Rows
from worker.engines.base import Engine
from worker.engines.transformers.compute_thread import apart

ENGINE_PART, BASELINES_PART, LIMIT_PART = "engine", "baselines", "limit"
_WARM_ANSWER = 16  # tokens
_START_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked for. `rate`: of Poisson arrivals in the ragged load; None: a closed loop. `cap`: seconds that one
    row of a baseline may take. `budget`: seconds for everything; rows that would begin later are left out.
    """

    device: str
    slots: int
    concurrency: tuple[int, ...]
    baseline_concurrency: tuple[int, ...]
    prompt: int
    answer: int
    rows: tuple[str, ...]
    parts: tuple[str, ...]
    baselines: tuple[str, ...]
    rate: float | None
    requests_a_place: int
    newcomers: int
    arriving: tuple[int, ...]
    temperature: float
    seed: int
    cap: float
    row_seconds: float
    budget: float


def say(line: str) -> None:
    """One line of progress, however long."""
    print(f"  {line}", file=sys.stderr, flush=True)


class Run:
    """One run, and what it has found so far."""

    def __init__(
        self, settings: Settings, subject: Subject, result: Report, file: Path | None
    ) -> None:
        self._settings = settings
        self._subject = subject
        self._result = result
        self._file = file
        self._given = list(result.tables)
        self._until = time.monotonic() + settings.budget
        self.found: list[Found] = []
        self.disturbed: list[Disturbed] = []
        self.bounds: list[Bound] = []
        self._facts: list[dict[str, object]] = []

    def run(self, engine_path: str | None) -> None:
        """Everything that was asked for."""
        parts = self._settings.parts
        if LIMIT_PART in parts:  # first: the largest copy wants memory that the others would keep
            self._attempt("the bandwidth's limit", self._measure_limit)
        if ENGINE_PART in parts:
            self._attempt("the engine", lambda: asyncio.run(self._measure_engine(engine_path)))
        self._subject.clean_up()
        if BASELINES_PART in parts:
            apart(self._measure_baselines)
        self._save()

    @property
    def _shared(self) -> Shared:
        """What others than the engine compute with, or a bound comes from."""
        assert isinstance(self._subject, Shared)  # noqa: S101 - those parts are asked for with no other
        return self._subject

    def _asks(self, kind: str, at_once: int) -> list[Ask]:
        """The requests of a load, the same for everybody."""
        it = self._settings
        if kind == UNIFORM:
            return load.uniform(at_once, it.prompt, it.answer)
        return load.ragged(at_once * it.requests_a_place, self._subject.context, it.seed, it.rate)

    async def _measure_engine(self, path: str | None) -> None:
        it = self._settings
        engine = self._subject.engine(path, it.device, it.slots)
        prompts = self._subject.prompts(it.seed)
        say("engine: starting")
        began = time.perf_counter()
        async with asyncio.timeout(_START_SECONDS):
            await engine.start()
        chosen = self._subject.precision
        took = time.perf_counter() - began
        self._facts.append(
            {"engine_start_seconds": took, "precision": chosen, "context": self._subject.context}
        )
        say(f"engine: started in {time.perf_counter() - began:.1f} s")
        if chosen:
            self._note(f"the engine computes in {chosen}; everyone else in the dtype above")
        try:
            for kind in (UNIFORM, RAGGED):
                for at_once in it.concurrency if kind in it.rows else ():
                    await self._attempt_load(engine, prompts, kind, at_once)
            for at_once in it.concurrency if ARRIVALS in it.rows else ():
                for arriving in it.arriving:
                    await self._attempt_arrivals(engine, prompts, at_once, arriving)
        finally:
            await engine.stop()
        if engine.stuck:
            self._note(
                "the engine could not be stopped: what was measured after it shared the device with it"
            )

    async def _attempt_load(
        self, engine: Engine, prompts: Prompts, kind: str, at_once: int
    ) -> None:
        it, name = self._settings, f"{ENGINE}, {kind}, {at_once} at once"
        if not self._has_time(name):
            return
        try:
            async with asyncio.timeout(it.row_seconds):
                warm = time.perf_counter()
                asks = self._asks(kind, at_once)
                first = [Ask(ask.prompt, min(ask.answer, _WARM_ANSWER)) for ask in asks[:at_once]]
                await load.run_load(engine, prompts, first, at_once, it.temperature)
                warm = time.perf_counter() - warm
                tracks = await load.run_load(engine, prompts, asks, at_once, it.temperature)
        except Exception as error:  # an engine may fail in any way; the other rows are measured
            self._failed(name, error)
            return
        self._take(kind, ENGINE, at_once, tracks, warm)

    async def _attempt_arrivals(
        self, engine: Engine, prompts: Prompts, at_once: int, arriving: int
    ) -> None:
        it, context = self._settings, self._subject.context
        running = min(at_once, it.slots - 1)
        name = f"{ENGINE}, {arriving} tokens arrive beside {running}"
        if not self._fits(running, arriving):
            self._note(f"{name}: left out, for it needs one more slot, or a longer context")
            return
        if not self._has_time(name):
            return
        try:
            async with asyncio.timeout(it.row_seconds):
                came = await load.run_arrivals(
                    engine, prompts, streams=running, prompt=it.prompt, arriving=arriving, newcomers=it.newcomers,
                    context=context, seed=it.seed, temperature=it.temperature,
                )  # fmt: skip
        except Exception as error:  # as above
            self._failed(name, error)
            return
        self._take_arrivals(ENGINE, running, arriving, came)

    def _take_arrivals(self, who: str, running: int, arriving: int, came: load.Arrivals) -> None:
        failed = sum(bool(track.error) for track in came.newcomers)
        ttft = [1000 * (track.times[0] - track.asked) for track in came.newcomers if track.times]
        found = Disturbed(
            who=who, running=running, arriving=arriving, newcomers=len(came.newcomers) - failed,
            ttft=Spread.of(ttft),
            quiet=Spread.of(reading.quiet_gaps(came.running, came.newcomers)),
            pause=Spread.of(reading.pauses(came.running, came.newcomers)),
        )  # fmt: skip
        self.disturbed.append(found)
        if found.ttft and found.pause and found.quiet:
            say(
                f"{who}, {arriving} tokens arrive beside {running}: TTFT p50 {found.ttft.p50:.0f} p99 "
                f"{found.ttft.p99:.0f} ms, pause p99 {found.pause.p99:.0f} ms, before p50 {found.quiet.p50:.1f} ms"
            )
        self._save()

    def _measure_baselines(self) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()  # it warns that nothing ends the answers, which is meant
        it = self._settings
        prompts = self._subject.prompts(it.seed)
        for kind in (each for each in (UNIFORM, RAGGED) if each in it.rows):
            for who in it.baselines:
                for at_once in self._baseline_sizes(kind, who):
                    self._attempt_baseline(prompts, kind, who, at_once)
                    self._subject.clean_up()
        if ARRIVALS in it.rows and CONTINUOUS in it.baselines:
            for at_once in it.baseline_concurrency:
                for arriving in it.arriving:
                    self._attempt_late_baseline(prompts, at_once, arriving)
                    self._subject.clean_up()

    def _baseline_sizes(self, kind: str, who: str) -> Sequence[int]:
        """One request at a time is measured once; and a batch of one is not measured twice."""
        if who == ONE_BY_ONE:
            return [1] if kind == UNIFORM else []
        sizes = self._settings.baseline_concurrency
        if who == "static" and ONE_BY_ONE in self._settings.baselines:
            return [size for size in sizes if size > 1]
        return sizes

    def _attempt_baseline(self, prompts: Prompts, kind: str, who: str, at_once: int) -> None:
        it, name = self._settings, f"{who}, {kind}, {at_once} at once"
        if not self._has_time(name):
            return
        asks = self._asks(kind, at_once)
        began = time.perf_counter()
        try:
            ids = [prompts.ids(prompts.text(ask.prompt)) for ask in asks]
            tracks = BASELINES[who](self._shared.model, asks, ids, at_once, self._cap())
        except Exception as error:  # a baseline that fails costs only itself
            self._failed(name, error)
            return
        if not tracks:
            self._note(f"{name}: nothing was made within {it.cap:.0f} s")
            return
        made, wanted = sum(track.tokens for track in tracks), sum(ask.answer for ask in asks)
        self._take(kind, who, at_once, tracks, time.perf_counter() - began, whole=made >= wanted)
        if made < wanted:
            self._note(f"{name}: cut short by --cap: {made} of {wanted} tokens")

    def _attempt_late_baseline(self, prompts: Prompts, at_once: int, arriving: int) -> None:
        it, context = self._settings, self._subject.context
        running = min(at_once, it.slots - 1)
        name = f"{CONTINUOUS}, {arriving} tokens arrive beside {running}"
        if not self._fits(running, arriving) or not self._has_time(name):
            return
        ids = [prompts.ids(prompts.text(it.prompt)) for _ in range(running)]
        late = [prompts.ids(prompts.text(arriving)) for _ in range(it.newcomers)]
        try:
            came = continuous.arrivals(
                self._shared.model, ids, late, context - it.prompt - 1, it.seed, self._cap()
            )
        except Exception as error:  # as above
            self._failed(name, error)
            return
        self._take_arrivals(CONTINUOUS, running, arriving, came)

    def _fits(self, running: int, arriving: int) -> bool:
        """Whether newcomers find a slot, and room for their prompts."""
        it = self._settings
        return running >= 1 and self._subject.context >= max(arriving, it.prompt) + it.answer

    def _measure_limit(self) -> None:
        it, reads = self._settings, self._shared.reads
        speed = limit.bandwidth(it.device)
        for kind in (each for each in (UNIFORM, RAGGED) if each in it.rows):
            for at_once in it.concurrency:
                context = reading.mean_context(self._asks(kind, at_once))
                self.bounds.append(
                    Bound(kind, at_once, context, reads.weights, reads.kv(at_once, context), speed)
                )
        self._subject.clean_up()
        say(f"bandwidth: {speed / 1e9:.0f} GB/s, read and written")
        self._save()

    def _take(
        self,
        kind: str,
        who: str,
        at_once: int,
        tracks: list[Track],
        warm: float,
        *,
        whole: bool = True,
    ) -> None:
        """`whole`: no cap cut it short."""
        it = read(kind, who, tracks, steady=whole and self._settings.rate is None)
        self.found.append(Found(kind, who, at_once, it))
        for error in sorted({track.error for track in tracks if track.error})[:3]:
            self._note(f"{who}, {kind}, {at_once} at once: {error}")
        step = f"{it.step_ms:.2f} ms a step, " if it.step_ms else ""
        first = f"TTFT p50 {it.ttft.p50:.0f} p99 {it.ttft.p99:.0f} ms, " if it.ttft else ""
        gap = f"gap p50 {it.gap.p50:.1f} p99 {it.gap.p99:.1f} ms" if it.gap else ""
        spent = f" (warm-up {warm:.1f} s)" if who == ENGINE else f" ({warm:.1f} s in all)"
        say(f"{who}, {kind}, {at_once} at once: {it.rate:.1f} tok/s, {step}{first}{gap}{spent}")
        self._save()

    def _attempt(self, name: str, work: Callable[[], None]) -> None:
        if not self._has_time(name):
            return
        try:
            apart(
                work
            )  # what one part leaves behind of OpenMP's threads must not slow the next one down
        except Exception as error:  # each part stands for itself
            self._failed(name, error)

    def _cap(self) -> float:
        return max(1.0, min(self._settings.cap, self._until - time.monotonic()))

    def _has_time(self, name: str) -> bool:
        if time.monotonic() < self._until:
            return True
        self._note(f"{name}: left out, for the time was up")
        return False

    def _failed(self, name: str, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._note(f"{name}: failed: {type(error).__name__}: {line}")
        self._save()

    def _note(self, line: str) -> None:
        say(line)
        self._result.notes.append(line)

    def _save(self) -> None:
        self._result.tables = [*self._given, *self._tables()]
        self._result.facts = {
            "found": [asdict(each) for each in self.found],
            "arrivals": [asdict(each) for each in self.disturbed],
            "limits": [
                {**asdict(each), "step_ms": each.step_ms, "rate": each.rate} for each in self.bounds
            ],
            "start": self._facts,
        }
        if self._file is not None:
            self._result.write(self._file)

    def _tables(self) -> list[Rows]:
        how = (
            "closed loop" if self._settings.rate is None else f"{self._settings.rate:g} requests/s"
        )
        tables = [
            table.loads(UNIFORM, "all at once, equal lengths; times in ms", self.found),
            table.loads(RAGGED, f"ragged lengths, {how}; times in ms", self.found),
            table.disturbances(self.disturbed),
            table.bounds(self.bounds),
            table.ratios(self.found, self.bounds),
        ]
        return [each for each in tables if each.rows]


def read(kind: str, who: str, tracks: Sequence[Track], *, steady: bool) -> Reading:
    """`steady`: the places were filled again until nothing was left, and what follows does not count. Batches of
    `generate` have no such places, and of a load that was cut short the last requests may never have begun: there the
    whole time counts.
    """
    if kind == UNIFORM:
        return reading.read_wave(tracks)
    steady = steady and who not in (ONE_BY_ONE, "static")
    return reading.read_loop(tracks) if steady else reading.read_until_last(tracks)
