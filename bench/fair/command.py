"""`bench fair`: what a light user notices of a flood. `echo`, with a fixed time a token."""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench import harness, options, streaming
from bench.errors import RequestFailed
from bench.fair import batch as batches
from bench.harness import Instance
from bench.report import Progress, Report, Row, Table
from bench.stats import Spread
from bench.streaming import StreamClient
from cli.home import module_command

NODES, SLOTS = 2, 4  # workers, and slots of each
TOKENS, TOKEN_DELAY = 20, 0.05  # of an answer; seconds each
SERVICE_SECONDS = TOKENS * TOKEN_DELAY
PAUSE = (0.5, 1.0)  # seconds between two questions of the light user
_WARM_UP = 3  # unmeasured questions
_ADMISSION_SECONDS = 120.0  # by then a flood is admitted, unless something is broken
_SETTLE = 5.0  # seconds: until answers end that began before all floods were there
_CONNECTING = 64  # connections opened at a time: the listener's backlog is finite
_PATIENCE = 30.0  # seconds after the last question for those that have not begun


@dataclass(frozen=True)
class Scenario:
    """The light user beside floods with these shares. `cap`: CANOPY_USER_JOBS."""

    name: str
    shares: tuple[float, ...] = (1.0,)
    cap: str = ""


SCENARIOS = (
    Scenario("alone", ()),  # what the others are compared with
    Scenario("beside a flood"),
    Scenario("beside a flood, at most 6 jobs a user", cap="6"),
    Scenario("beside two floods, shares of 2 and 1", (2.0, 1.0)),
)


@dataclass(frozen=True)
class Outcome:
    """The light user's seconds to first tokens, and the tokens that each flood got meanwhile."""

    scenario: Scenario
    ttfts: list[float]
    tokens: list[int]


async def measure(scenario: Scenario, questions: int, flood: int) -> Outcome:
    """Beside `flood` heavy requests. Raises NotStarted, RequestFailed, OSError, in groups."""
    with _service(scenario, flood) as (canopy, keys):
        request = streaming.chat(canopy.port, keys[0], canopy.model, TOKENS)
        rng = random.Random(1)
        await ask_at_intervals(canopy.port, request, _WARM_UP, rng)
        floods = []
        for key in keys[1:]:
            # Of half TOKENS to one and a half, so that slots become free one by one.
            lengths = range(TOKENS // 2, TOKENS * 3 // 2 + 1)
            requests = [streaming.chat(canopy.port, key, canopy.model, n) for n in lengths]
            floods.append(Flood(canopy.port, flood // len(scenario.shares), requests))
        async with asyncio.TaskGroup() as group:
            flowing = [group.create_task(each.flow()) for each in floods]
            async with asyncio.timeout(_ADMISSION_SECONDS):
                for each in floods:
                    await each.admitted.wait()
            await asyncio.sleep(_SETTLE)
            begin = time.perf_counter()
            ttfts = await ask_at_intervals(canopy.port, request, questions, rng)
            end = time.perf_counter()
            for task in flowing:
                task.cancel()
    return Outcome(scenario, ttfts, [each.tokens_within(begin, end) for each in floods])


@contextlib.contextmanager
def _service(scenario: Scenario, jobs: int) -> Iterator[tuple[Instance, list[str]]]:
    """An instance whose backlog holds so many jobs, and keys of the light and the heavy users."""
    environment = {"CANOPY_BACKLOG": str(2 * jobs + 1000), "CANOPY_USER_JOBS": scenario.cap}
    options = ["--engine", "echo", "--nodes", str(NODES), "--slots", str(SLOTS)]
    options += ["--token-delay", str(TOKEN_DELAY)]
    users = ["light=1"]
    users += [f"heavy{number}={share}" for number, share in enumerate(scenario.shares)]
    with harness.running(*options, environment=environment) as canopy:
        command = module_command("bench.fair.accounts", *users)
        yield canopy, harness.output(command, canopy.environment).split()


class Flood:
    """`size` requests at any time: each that ends is followed by another."""

    def __init__(self, port: int, size: int, requests: Sequence[bytes]) -> None:
        """Each request is one of `requests`, chosen at random."""
        self.clients: list[StreamClient] = []
        self.admitted = asyncio.Event()  # all of the first wave
        self._port = port
        self._size = size
        self._requests = requests
        self._rng = random.Random(1)
        self._connecting = asyncio.Semaphore(_CONNECTING)
        self._accepted = 0

    async def flow(self) -> None:
        """Until cancelled: that gives its requests up. Raises OSError, RequestFailed in groups."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(self._size):
                lanes.create_task(self._ask_again_and_again())

    async def _ask_again_and_again(self) -> None:
        while True:
            async with self._connecting:
                client = await StreamClient.ask(self._port, self._rng.choice(self._requests))
            self.clients.append(client)
            try:
                await client.accepted.wait()
                self._accepted += 1
                if self._accepted == self._size:
                    self.admitted.set()
                await client.ended.wait()
            finally:
                client.close()
            if client.timeline.error:
                raise RequestFailed(f"a request of a flood: {client.timeline.error}")

    def tokens_within(self, begin: float, end: float) -> int:
        """Moments are those of time.perf_counter."""
        return sum(client.timeline.tokens_within(begin, end) for client in self.clients)


async def ask_at_intervals(
    port: int, request: bytes, questions: int, rng: random.Random
) -> list[float]:
    """Seconds to the first token of each, or to the end. Raises OSError, RequestFailed."""
    clients: list[StreamClient] = []
    try:
        due = time.perf_counter()
        for _ in range(questions):
            clients.append(await StreamClient.ask(port, request))
            due += rng.uniform(*PAUSE)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                for client in clients:
                    await client.ended.wait()
    finally:
        for client in clients:
            client.close()
    now = time.perf_counter()
    ttfts = []
    for timeline in [client.timeline for client in clients]:
        if timeline.error:
            raise RequestFailed(f"a question of the light user: {timeline.error}")
        first = timeline.times[0] if timeline.times else now
        ttfts.append(first - timeline.sent)
    return ttfts


@click.command
@click.option("--questions", type=click.IntRange(min=2), default=60, help="Of the light user.")
@click.option("--flood", type=click.IntRange(min=2), default=1000, help="Requests at any time.")
@click.option("--only", default="", help="Only scenarios with this in their name.")
@click.option("--batch", type=click.IntRange(0), default=0, help="Beside so many lines of a batch.")
@click.option(
    "--rounds", type=options.COUNT, default=4, help="--batch: alone and beside, in turns."
)
@options.json_file
def command(
    questions: int, flood: int, only: str, batch: int, rounds: int, json_file: Path | None
) -> None:
    """Time to first token beside a flood or a batch, and the shares of two floods."""
    if batch:
        result = Report("fair-batch", {"lines": batch, "questions": questions, "rounds": rounds})
        batches.run(result, batch, questions, rounds)
        result.finish(json_file)
        return
    alone, *others = SCENARIOS
    chosen = [alone] + [scenario for scenario in others if only in scenario.name]
    result = Report("fair", {"questions": questions, "flood": flood})
    progress = Progress(len(chosen))
    outcomes = []
    for scenario in chosen:
        progress.step(scenario.name)
        outcomes.append(asyncio.run(measure(scenario, questions, flood)))
    fill(result, outcomes)
    result.finish(json_file)


def fill(result: Report, outcomes: Sequence[Outcome]) -> None:
    """Adds the table and notes. The first outcome is the light user alone."""
    alone = Spread.of(outcomes[0].ttfts).p95
    rows: list[Row] = []
    for outcome in outcomes:
        ttft = Spread.of(outcome.ttfts)
        row: dict[str, object] = {"the light user": outcome.scenario.name}
        row |= ttft.cells("TTFT s", "p50", "p95", "max")
        row["x alone"] = ttft.p95 / alone
        row["services later"] = (ttft.p95 - alone) / SERVICE_SECONDS
        total = max(1, sum(outcome.tokens))
        shares = [f"{100 * tokens / total:.1f}" for tokens in outcome.tokens]
        row["floods got %"] = " / ".join(shares) or None
        rows.append(row)
        result.facts[outcome.scenario.name] = {"ttft_seconds": outcome.ttfts}
    result.tables.append(Table("a light user, beside others", rows, digits=3))
    result.notes += [
        "goals beside a flood: p95 of the TTFT at most 1.5 x alone; at most one service later",
        f"TTFT: seconds to the first token, {TOKEN_DELAY:g} s of it the engine's. "
        f"A service: one answer, {SERVICE_SECONDS:g} s.",
    ]
