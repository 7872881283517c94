"""`bench latency`: what one request alone costs on its way, stage by stage, beside a bare AMQP round trip.

One client, one request at a time, the echo engine without delay, one node below the root: every stage passes the
same two hops (entrance -> root's queue -> node's queue -> reply queue). The stages are measured in turn, a block
each, so that whatever else the machine does hits all of them alike.
"""

import asyncio
import gc
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

import typer

from bench import bare, cpu, instance, report, stats, web
from bench.instance import Instance
from bench.report import Report, Rows
from broker.client import Client
from broker.wire import ChatMessage, Delta, Failed, Job, Sampling, encode

TOKENS = (1, 32)
BARE = "bare AMQP"
_QUESTION = "Hello out there, how are you today?"

Sample = Mapping[str, float]  # series -> seconds
Rounds = dict[str, list[list[float]]]  # series -> rounds -> milliseconds


@dataclass(frozen=True, slots=True)
class Stage:
    """One thing that is measured; a request of it may give several series."""

    name: str
    ask: Callable[[], Awaitable[Sample]]


@dataclass(slots=True)
class Found:
    """What was measured. `cpu`: stage -> process -> milliseconds a request, by round."""

    latency: Rounds = field(default_factory=dict)
    cpu: dict[str, Rounds] = field(default_factory=dict)

    def add(self, stage: str, samples: list[Sample], spent: Mapping[str, float]) -> None:
        """Takes one block."""
        for series in samples[0]:
            self.latency.setdefault(series, []).append(
                [sample[series] * 1000 for sample in samples]
            )
        for process, seconds in spent.items():
            processes = self.cpu.setdefault(stage, {})
            processes.setdefault(process, []).append([seconds * 1000 / len(samples)])


def command(
    requests: Annotated[
        int, typer.Option("-n", "--requests", min=10, help="Requests a stage.")
    ] = 500,
    block: Annotated[
        int, typer.Option(min=1, help="Requests of a stage before the next one's turn.")
    ] = 25,
    warm_up: Annotated[int, typer.Option(min=1, help="Unmeasured requests a stage.")] = 50,
    pause: Annotated[
        bool, typer.Option("--pause", help="Wait for Enter first: to attach a profiler.")
    ] = False,
    json_file: report.JsonOption = None,
) -> None:
    """Milliseconds from request to answer, one client: HTTP, broker client, bare AMQP."""
    block = min(block, requests)
    result = Report(
        "latency", {"requests": requests, "block": block, "warm_up": warm_up, "nodes": 1, "hops": 2}
    )
    with instance.running("--engine", "echo", "--nodes", "1") as canopy:
        if pause:
            report.say(f"processes: {canopy.pids()}")
            typer.prompt("Enter to go on", default="", show_default=False, err=True)
        found = asyncio.run(_measure(canopy, requests // block, block, warm_up))
    _tell(result, found)
    result.finish(json_file)


async def _measure(canopy: Instance, rounds: int, block: int, warm_up: int) -> Found:
    """Every stage `rounds` times in turn, `block` requests each."""
    found = Found()
    async with _stages(canopy) as (stages, meter):
        with report.progress() as bar:
            task = bar.add_task("warming up", total=len(stages) * (rounds + 1))
            for stage in stages:
                await _block(stage, warm_up)
                bar.advance(task)
            bar.update(task, description="measuring")
            for _ in range(rounds):
                for stage in stages:
                    gc.collect()  # not within the block
                    before = meter.read()
                    samples = await _block(stage, block)
                    found.add(stage.name, samples, cpu.spent(before, meter.read()))
                    bar.advance(task)
    return found


async def _block(stage: Stage, count: int) -> list[Sample]:
    """`count` requests of one stage, one after the other."""
    return [await stage.ask() for _ in range(count)]


@asynccontextmanager
async def _stages(canopy: Instance) -> AsyncIterator[tuple[list[Stage], cpu.Meter]]:
    """Everything that is measured, connected and ready."""
    client = Client(canopy.amqp("api"), process=f"bench-{uuid.uuid4().hex[:8]}")
    await client.start()
    connection = await web.Connection.open(canopy.port)
    try:
        while not client.connected:
            await asyncio.wait_for(client.changed(), 10)
        async with bare.running(canopy.amqp("admin")) as tree:
            stages = [
                _bare(tree, canopy.model),
                *(_client(client, canopy.model, tokens) for tokens in TOKENS),
                _floor(connection, canopy),
                *(_whole(connection, canopy, tokens) for tokens in TOKENS),
                *(_streamed(connection, canopy, tokens) for tokens in TOKENS),
            ]
            pids = {name: [canopy.pids()[name]] for name in ("broker", "api", "root", "n1")}
            yield stages, cpu.Meter({"bench": [os.getpid()], "bare": tree.pids, **pids})
    finally:
        connection.close()
        await client.stop()


def _bare(tree: bare.BareTree, model: str) -> Stage:
    body = encode(_job(model, 1))  # as many bytes as Canopy sends; nobody reads them

    async def stage() -> Sample:
        began = time.perf_counter()
        await tree.round_trip(body)
        return {BARE: time.perf_counter() - began}

    return Stage(BARE, stage)


def _client(client: Client, model: str, tokens: int) -> Stage:
    series = f"client {tokens}"

    async def stage() -> Sample:
        began = time.perf_counter()
        first = 0.0
        async for frame in await client.submit(_job(model, tokens)):
            if isinstance(frame, Failed):
                raise web.Refused(frame.message)
            if isinstance(frame, Delta) and not first:
                first = time.perf_counter()
        return {
            f"{series}, first token": first - began,
            f"{series}, end": time.perf_counter() - began,
        }

    return Stage(series, stage)


def _floor(connection: web.Connection, canopy: Instance) -> Stage:
    """A request that reaches Django and asks nobody."""
    words = web.request("GET", "/healthz", canopy.port)
    series = "HTTP, no job"

    async def stage() -> Sample:
        began = time.perf_counter()
        return {series: (await connection.ask(words)).ended - began}

    return Stage(series, stage)


def _whole(connection: web.Connection, canopy: Instance, tokens: int) -> Stage:
    words = _asking(canopy, tokens, stream=False)
    series = f"HTTP whole {tokens}"

    async def stage() -> Sample:
        began = time.perf_counter()
        answer = await connection.ask(words)
        assert json.loads(answer.body)["usage"]["completion_tokens"] == tokens  # noqa: S101 - else nothing was measured
        return {series: answer.ended - began}

    return Stage(series, stage)


def _streamed(connection: web.Connection, canopy: Instance, tokens: int) -> Stage:
    words = _asking(canopy, tokens, stream=True)
    series = f"HTTP streamed {tokens}"

    async def stage() -> Sample:
        began = time.perf_counter()
        answer = await connection.ask(words)
        first = answer.first(
            b'"content":"Hello'
        )  # the chunk before it carries the role and no text
        return {f"{series}, first token": first - began, f"{series}, end": answer.ended - began}

    return Stage(series, stage)


def _asking(canopy: Instance, tokens: int, *, stream: bool) -> bytes:
    body = {
        "model": canopy.model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "max_tokens": tokens,
        "stream": stream,
    }
    return web.request(
        "POST", "/v1/chat/completions", canopy.port, canopy.key, json.dumps(body).encode()
    )


def _job(model: str, tokens: int) -> Job:
    return Job(
        request_id=uuid.uuid4().hex,
        model=model,
        reply_to="",  # the client fills it in
        created=time.time(),
        messages=(ChatMessage(role="user", content=_QUESTION),),
        sampling=Sampling(max_tokens=tokens),
        user="bench",
    )


def _tell(result: Report, found: Found) -> None:
    rounds = found.latency
    result.tables += [_latencies(rounds), _processor(found.cpu)]
    result.facts["p50_ms_by_round"] = {
        series: [round(stats.percentile(each, 50), 4) for each in values]
        for series, values in rounds.items()
    }
    result.notes += [
        "bare AMQP: the same two hops. client: the API's broker client without HTTP. no job: GET /healthz.",
        "1 and 32 are tokens. The end of HTTP is its last byte, of the client its last frame.",
        "x bare: median over the rounds of (median of this stage / median of bare AMQP in the same round).",
        "quietest: p50 of the stage's best round. The benchmark shares the machine with what it measures.",
        "echo without delay answers in one piece: 1 and 32 tokens differ by the size of that piece, not by steps.",
        "processor time holds all that a process does meanwhile: beats, states for dashboards, the broker's own work.",
    ]


def _latencies(rounds: Rounds) -> Rows:
    summaries = stats.summaries(rounds)
    ratios = {series: stats.ratio_by_round(rounds[series], rounds[BARE]) for series in rounds}
    rows = [
        (series, each.p50, each.p95, each.p99, each.quietest, ratios[series])
        for series, each in summaries.items()
    ]
    columns = ("stage", "p50 ms", "p95 ms", "p99 ms", "quietest", "x bare")
    return Rows(f"latency, one client, n={summaries[BARE].count} a stage", columns, rows)


def _processor(measured: Mapping[str, Rounds]) -> Rows:
    processes = list(measured[BARE])
    rows = []
    for stage, series in measured.items():
        medians = [stats.Summary.of(series[process]).p50 for process in processes]
        rows.append((stage, *medians, sum(medians)))
    return Rows(
        "processor time, ms a request (median of the rounds)", ("stage", *processes, "all"), rows
    )
