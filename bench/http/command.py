"""`bench http`: streams and API processes, each pair of numbers in its own instance."""

import asyncio
import gc
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from bench import cpu, harness, options, streaming
from bench.report import Progress, Report, Row, Table
from bench.stats import Spread, Timeline, ttfts
from bench.streaming import StreamClient

LIMIT_MS = 250.0  # a stream that is later than this stutters
_SETTLE = 1.0  # seconds from the last start to the window
_SPARE_SECONDS = 60.0  # by which the load may exceed its plan


@dataclass(slots=True)
class Outcome:
    """All streams; `begin` to `end` is the measured window."""

    timelines: list[Timeline] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)  # processor seconds in the window

    def cells(self, rate: float) -> dict[str, object]:
        """A row's: times in ms, processor time in us a token; `holds`: within LIMIT_MS."""
        late: list[float] = []
        worst_ms = 0.0
        tokens = 0
        for timeline in self.timelines:
            own = lateness(timeline, rate, self.begin, self.end)
            late += own
            worst_ms = max(worst_ms, Spread.of(own, 1000).p99)
            tokens += timeline.tokens_within(self.begin, self.end)
        due = rate * len(self.timelines) * (self.end - self.begin)
        row: dict[str, object] = {"delivered %": 100 * tokens / due}
        row |= Spread.of(ttfts(self.timelines), 1000).cells("TTFT", "p50", "p95", "p99")
        row |= Spread.of(late, 1000).cells("late", "p50", "p99")
        errors = Counter(timeline.error for timeline in self.timelines if timeline.error)
        verdict = "; ".join(f"{count} x {error}" for error, count in errors.items())
        if not verdict:
            verdict = "yes" if worst_ms <= LIMIT_MS else "NO"
        row |= {"worst stream p99": worst_ms, "holds": verdict}
        for process, seconds in self.cpu.items():
            if process != cpu.SECONDS:
                row[f"{process} us"] = 1e6 * seconds / max(1, tokens)
        return row


def lateness(timeline: Timeline, rate: float, begin: float, end: float) -> list[float]:
    """Seconds behind schedule of each token, and of the one due at `end` if a stream stopped."""
    late = []
    number = 0
    for at, count in zip(timeline.times, timeline.counts, strict=True):
        if at > end:
            break
        for _ in range(count):
            number += 1
            if at >= begin:
                late.append(at - timeline.sent - number / rate)
    late.append(max(0.0, end - timeline.sent - (number + 1) / rate))
    return late


async def run_load(
    port: int,
    request: bytes,
    streams: int,
    starts: float,
    seconds: float,
    pids: Mapping[str, Sequence[int]],
) -> Outcome:
    """Begins `starts` streams a second and measures while all run. Raises TimeoutError."""
    outcome = Outcome()
    clients: list[StreamClient] = []
    gc.disable()  # a collection would make the load late
    try:
        async with asyncio.timeout(streams / starts + seconds + _SPARE_SECONDS):
            began = time.perf_counter()
            for number in range(streams):
                await asyncio.sleep(began + number / starts - time.perf_counter())
                clients.append(await StreamClient.ask(port, request))
            await asyncio.sleep(_SETTLE)
            with cpu.measured(pids) as outcome.cpu:
                outcome.begin = time.perf_counter()
                await asyncio.sleep(seconds)
                outcome.end = time.perf_counter()
    finally:
        gc.enable()
        for client in clients:
            client.close()
    for client in clients:
        if client.timeline.ended is not None:
            client.timeline.error = "ended early"
        outcome.timelines.append(client.timeline)
    return outcome


NODES = 2
_NUMBER = click.FloatRange(min=1)
_STREAMS, _APIS = (100, 1000, 2000), (1, 2)


@click.command
@click.option("--streams", type=options.COUNT, multiple=True, default=_STREAMS, help="Repeatable.")
@click.option(
    "--apis", type=options.COUNT, multiple=True, default=_APIS, help="Processes; repeatable."
)
@click.option("--rate", type=_NUMBER, default=20.0, help="Tokens a second in each stream.")
@click.option("--seconds", type=_NUMBER, default=20.0, help="Length of the measured window.")
@click.option("--starts", type=_NUMBER, default=50.0, help="Streams started a second.")
@options.json_file
def command(
    streams: tuple[int, ...],
    apis: tuple[int, ...],
    rate: float,
    seconds: float,
    starts: float,
    json_file: Path | None,
) -> None:
    """Token streams over HTTP: how many keep up with their rate, and what they cost."""
    settings = {"rate": rate, "seconds": seconds, "starts": starts}
    result = Report("http", {**settings, "nodes": NODES, "engine": "echo"})
    progress = Progress(len(streams) * len(apis))
    rows: list[Row] = []
    for api_count in apis:
        for stream_count in streams:
            name = f"{stream_count} streams, API processes: {api_count}"
            progress.step(name)
            try:
                outcome = _measure(stream_count, api_count, rate, starts, seconds)
            except TimeoutError:
                result.notes.append(f"{name}: so far behind that nothing was measured")
                continue
            rows.append({"streams": stream_count, "APIs": api_count} | outcome.cells(rate))
    result.tables = [Table("times in ms; processor time in us a token", rows, digits=1)]
    result.notes.append(
        f"holds: no stream's 99th percentile of lateness is above {LIMIT_MS:.0f} ms; none broke. "
        "A token is due at its request's start + its number / rate: the TTFT counts as lateness."
    )
    result.finish(json_file)


def _measure(streams: int, apis: int, rate: float, starts: float, seconds: float) -> Outcome:
    """Raises NotStarted, and TimeoutError if the load does not come to its end."""
    words = ["--engine", "echo", "--nodes", str(NODES), "--api-processes", str(apis)]
    words += ["--token-delay", str(1 / rate)]
    tokens = int(2 * rate * (streams / starts + seconds)) + 1000  # none ends before the window
    # Every node has slots for all streams: how they are shared out is dispatch's matter.
    with harness.running(*words, "--slots", str(streams)) as canopy:
        pids = canopy.pids() | {"load": [os.getpid()]}
        request = streaming.chat(canopy.port, canopy.key, canopy.model, tokens)
        return asyncio.run(run_load(canopy.port, request, streams, starts, seconds, pids))
