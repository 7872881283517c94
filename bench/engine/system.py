"""The whole system under the uniform load: an instance with one node, or with one a GPU."""

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import cpu, harness, web
from bench.engine import reading
from bench.engine.load import Ask
from bench.engine.prompts import Prompts
from bench.engine.reading import Reading
from bench.errors import RequestFailed
from bench.harness import Instance
from bench.report import Row, Table, say
from bench.timeline import Timeline, first_errors

_WARM_ANSWER = 16  # tokens
_ROW_SECONDS = 300.0
Pieces = Sequence[tuple[float, bytes]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One concurrency per node. `cores`: by process, processor seconds a second."""

    reading: Reading
    cores: dict[str, float]


Cells = Mapping[int, Cell]  # by concurrency per node


def measure(
    options: Sequence[str], nodes: int, concurrency: Sequence[int], prompts: Prompts, ask: Ask
) -> dict[int, Cell]:
    """`options`: of `up`, for the model and the device. Raises NotStarted."""
    harness.allow_many_connections()
    cells = {}
    slots = str(max(concurrency))
    with harness.running(*options, "--nodes", str(nodes), "--slots", slots) as canopy:
        for size in concurrency:
            cells[size] = asyncio.run(_measure(canopy, prompts, size * nodes, ask))
            rate, failed = cells[size].reading.rate, cells[size].reading.failed
            say(f"system, {nodes} nodes, {size} each: {rate:.1f} tok/s, {failed} failed")
    return cells


async def _measure(canopy: Instance, prompts: Prompts, requests: int, ask: Ask) -> Cell:
    pids = {**canopy.pids(), "load": [os.getpid()]}
    warm_up = Ask(ask.prompt, min(ask.answer, _WARM_ANSWER))
    async with asyncio.timeout(_ROW_SECONDS):
        await wave(canopy, [prompts.text(ask.prompt) for _ in range(requests)], warm_up, pids)
        texts = [prompts.text(ask.prompt) for _ in range(requests)]
        timelines, usage = await wave(canopy, texts, ask, pids)
    for error in first_errors(timelines):
        say(f"  {error}")
    seconds = usage.pop(cpu.SECONDS)
    cores = {name: spent / seconds for name, spent in usage.items()}
    return Cell(reading.read(timelines), cores)


async def wave(
    canopy: Instance, texts: Sequence[str], ask: Ask, pids: Mapping[str, Sequence[int]]
) -> tuple[list[Timeline], dict[str, float]]:
    """Asks for all answers at once over connections that are open before the clock runs.

    Also returns what `cpu.measured` says it cost.
    """
    connections = [await web.Connection.open(canopy.port) for _ in texts]
    try:
        with cpu.measured(pids) as usage:
            pairs = zip(connections, texts, strict=True)
            answers = [_answer(connection, canopy, text, ask) for connection, text in pairs]
            responses = await asyncio.gather(*answers)
    finally:
        for connection in connections:
            connection.close()
    # Parsed only now: meanwhile the tokens of others would wait, and seem late.
    return [read_events(timeline, pieces) for timeline, pieces in responses], usage


async def _answer(
    connection: web.Connection, canopy: Instance, text: str, ask: Ask
) -> tuple[Timeline, Pieces]:
    body = {"model": canopy.model, "prompt": text, "max_tokens": ask.answer, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    request = web.post("/v1/completions", canopy.port, canopy.key, body)
    timeline = Timeline(time.perf_counter())
    try:
        return timeline, (await connection.send(request)).pieces
    except (RequestFailed, ConnectionError) as error:
        timeline.error = str(error)
        return timeline, ()


def read_events(timeline: Timeline, pieces: Pieces) -> Timeline:
    """Server-sent events, in pieces as they arrived, into the timeline.

    An event does not say how many tokens it carries: the answer's tokens, which its last event
    counts, are shared out evenly among its events.
    """
    times: list[float] = []
    partial_line, tokens = b"", 0
    for at, piece in pieces:
        *lines, partial_line = (partial_line + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                timeline.error = str(event["error"].get("message"))
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            if any(choice.get("text") for choice in event.get("choices", ())):
                times.append(at)
    for number, at in enumerate(times):
        until, before = tokens * (number + 1) // len(times), tokens * number // len(times)
        timeline.add(at, until - before)
    if not tokens and not timeline.error:
        timeline.error = "the answer ended without its count of tokens"
    return timeline


def tables(systems: Mapping[int, Cells], engine: Mapping[int, Reading]) -> list[Table]:
    """`systems` by number of nodes, `engine` by concurrency: rates, and cores in use."""
    rates: list[Row] = []
    cores: dict[str, dict[str, object]] = {}
    one = systems[1]
    for nodes, cells in systems.items():
        for size, cell in cells.items():
            it, alone = cell.reading, engine.get(size)
            single = one[size].reading.rate
            rates.append(
                {
                    "nodes": nodes,
                    "concurrency a node": size,
                    "system tok/s": it.rate,
                    "engine alone": alone.rate if alone else None,
                    "/ engine": it.rate / alone.rate if alone and nodes == 1 else None,
                    "/ one node": it.rate / single if single and nodes > 1 else None,
                    **it.ttft.cells("TTFT", "p50", "p99"),
                    **it.gap.cells("gap", "p50", "p99"),
                    "failed": it.failed,
                }
            )
            for process, share in cell.cores.items():
                row = cores.setdefault(process, {"process": process})
                row[f"{nodes} x {size}"] = share
    columns: dict[str, object] = {}
    for row in cores.values():
        columns |= dict.fromkeys(row)
    rows = [columns | row for row in cores.values()]
    return [Table("the whole system, ms", rates), Table("cores in use, nodes x concurrency", rows)]
