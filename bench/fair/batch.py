"""What an interactive user notices of a batch: alone and beside it, in turns, in one instance."""

import asyncio
import json
import random
from dataclasses import dataclass, field

from bench import cpu, harness, streaming
from bench.harness import CANOPY, Instance
from bench.report import Progress, Report, Row, Table
from bench.stats import Spread
from bench.streaming import StreamClient

NODES, SLOTS = 2, 8  # workers, and slots of each
TOKEN_DELAY = 0.02  # seconds
TOKENS = 10  # of an answer, the user's and a line's
PAUSE = (0.05, 0.15)  # seconds between an answer's end and the user's next question
_WARM_UP = 20  # unmeasured questions
_SETTLE = 2.0  # seconds from a batch's start or end to the next question


@dataclass
class Phase:
    """All questions that were asked under one condition."""

    ttfts: list[float] = field(default_factory=list)  # seconds
    cpu: dict[str, float] = field(default_factory=dict)  # processor seconds by group
    lines: int = 0  # of batches, answered meanwhile


async def measure(canopy: Instance, lines: int, questions: int, rounds: int) -> tuple[Phase, Phase]:
    """Alone and beside a batch. Raises RequestFailed, OSError, NotStarted."""
    client = await _User.connect(canopy)
    await client.ask(_WARM_UP, random.Random(0))
    alone, beside = Phase(), Phase()
    file = canopy.home / "lines.jsonl"
    file.write_text("".join(_line(number, canopy.model) for number in range(lines)))
    progress = Progress(2 * rounds)
    for number in range(rounds):
        progress.step("alone")
        await client.fill(alone, questions, number)
        progress.step(f"beside a batch of {lines} lines")
        batch = json.loads(_canopy(canopy, "submit", str(file), "--json"))["id"]
        await asyncio.sleep(_SETTLE)
        before = _answered(canopy, batch)
        await client.fill(beside, questions, number)
        beside.lines += _answered(canopy, batch) - before
        _canopy(canopy, "cancel", batch)
        await asyncio.sleep(_SETTLE)
    client.close()
    return alone, beside


class _User:
    """Asks one question at a time, on a connection that is kept."""

    def __init__(self, canopy: Instance, client: StreamClient) -> None:
        self._pids = canopy.pids()
        self._client = client
        self._request = streaming.chat(canopy.port, canopy.key, canopy.model, TOKENS)

    @classmethod
    async def connect(cls, canopy: Instance) -> "_User":
        return cls(canopy, await StreamClient.open(canopy.port))

    async def fill(self, phase: Phase, questions: int, seed: int) -> None:
        """Asks, and adds what it found to the phase."""
        with cpu.measured(self._pids) as usage:
            phase.ttfts += await self.ask(questions, random.Random(seed))
        for name, seconds in usage.items():
            phase.cpu[name] = phase.cpu.get(name, 0.0) + seconds

    async def ask(self, questions: int, rng: random.Random) -> list[float]:
        """Seconds to the first token of each. Raises RequestFailed."""
        ttfts = []
        for _ in range(questions):
            self._client.send(self._request)
            await self._client.ended.wait()
            self._client.check()
            timeline = self._client.timeline
            ttfts.append(timeline.times[0] - timeline.sent)
            await asyncio.sleep(rng.uniform(*PAUSE))
        return ttfts

    def close(self) -> None:
        self._client.close()


def _line(number: int, model: str) -> str:
    words = " ".join([streaming.WORD] * TOKENS)
    body = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": TOKENS}
    line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line) + "\n"


def _canopy(canopy: Instance, *words: str) -> str:
    environment = {**canopy.environment, "CANOPY_KEY": canopy.key}
    return harness.output([*CANOPY, "batch", *words], environment)


def _answered(canopy: Instance, batch: str) -> int:
    counts = json.loads(_canopy(canopy, "show", batch, "--json"))["request_counts"]
    return int(counts["completed"])


def run(result: Report, lines: int, questions: int, rounds: int) -> None:
    """Fills the report. Raises NotStarted, RequestFailed, OSError."""
    words = ["--engine", "echo", "--nodes", str(NODES), "--slots", str(SLOTS)]
    with harness.running(*words, "--token-delay", str(TOKEN_DELAY)) as canopy:
        alone, beside = asyncio.run(measure(canopy, lines, questions, rounds))
    fill(result, alone, beside)


def fill(result: Report, alone: Phase, beside: Phase) -> None:
    """Adds the table and its notes."""
    rows: list[Row] = []
    for name, phase in (("alone", alone), ("beside a batch", beside)):
        reference, ttft = Spread.of(alone.ttfts, 1000), Spread.of(phase.ttfts, 1000)
        row: dict[str, object] = {"the user": name}
        row |= ttft.cells("TTFT ms", "p50", "p95", "p99")
        row |= {"x p50": ttft.p50 / reference.p50, "x p95": ttft.p95 / reference.p95}
        seconds = phase.cpu[cpu.SECONDS]
        row["api's CPU %"] = 100 * phase.cpu["api"] / seconds
        row["lines/s"] = phase.lines / seconds if phase.lines else None
        row["API ms a line"] = _ms_a_line(alone, phase) if phase.lines else None
        rows.append(row)
        result.facts[name] = {"ttft_seconds": phase.ttfts, "cpu": phase.cpu}
    result.tables.append(Table("an interactive user, beside a batch", rows))
    result.notes.append("goal: p95 of the TTFT at most 1.1 x alone")


def _ms_a_line(alone: Phase, beside: Phase) -> float:
    """Processor time that lines cost the API, by what it needs without them."""
    idle = alone.cpu["api"] / alone.cpu[cpu.SECONDS] * beside.cpu[cpu.SECONDS]
    return 1000 * (beside.cpu["api"] - idle) / beside.lines
