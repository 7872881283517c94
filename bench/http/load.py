"""The load: many streams. Token k (from 1) of one is due at `sent + k / rate`, TTFT included."""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench import cpu
from bench.stats import Spread
from bench.streaming import StreamClient
from bench.timeline import Timeline, ttfts

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


async def run(
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
