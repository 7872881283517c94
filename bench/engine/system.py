"""The whole system under the uniform load: an instance with one node, or with one a GPU."""

import asyncio
import json
import os
from collections.abc import Sequence

from bench import cpu, harness
from bench.engine import reading
from bench.engine.load import UNIFORM
from bench.engine.prompts import Prompt, Prompts, Request
from bench.engine.reading import Result
from bench.errors import RequestFailed
from bench.harness import Instance
from bench.report import say
from bench.stats import Timeline, first_errors
from bench.streaming import StreamClient, post

_WARM_ANSWER = 16  # tokens
_ROW_SECONDS = 300.0


class RecordingClient(StreamClient):
    """Keeps lines, to be parsed afterwards: meanwhile the tokens of others would seem late."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals: list[tuple[float, list[bytes]]] = []  # lines that came together

    def read(self, lines: list[bytes], now: float) -> None:
        self.arrivals.append((now, lines))
        for line in lines:
            self.read_event(line, now)


def measure(
    options: Sequence[str], nodes: int, sizes: Sequence[int], prompts: Prompts, request: Request
) -> list[Result]:
    """`options`: of `up`, for the model and the device. Raises NotStarted, RequestFailed."""
    results = []
    words = [*options, "--nodes", str(nodes), "--slots", str(max(sizes))]
    with harness.running(*words) as canopy:
        for size in sizes:
            result = asyncio.run(_measure(canopy, prompts, nodes, size, request))
            say(f"{result.contender}, {size} each: {result.reading.rate or 0:.1f} tok/s")
            results.append(result)
    return results


async def _measure(
    canopy: Instance, prompts: Prompts, nodes: int, size: int, request: Request
) -> Result:
    requests = [request] * (nodes * size)
    try:
        async with asyncio.timeout(_ROW_SECONDS):
            await _wave(canopy, prompts.make(requests), _WARM_ANSWER)
            timelines, usage = await _wave(canopy, prompts.make(requests), request.answer)
    except TimeoutError as error:
        message = f"{len(requests)} requests were not answered within {_ROW_SECONDS:.0f} s"
        raise RequestFailed(message) from error
    for problem in first_errors(timelines):
        say(f"  {problem}")
    seconds = usage.pop(cpu.SECONDS)
    cores = ", ".join(f"{process} {used / seconds:.2f}" for process, used in usage.items())
    it = reading.read(timelines, len(requests) * request.prompt)
    return Result(UNIFORM, size, f"system, nodes: {nodes}", it, nodes, cores)


async def _wave(
    canopy: Instance, batch: Sequence[Prompt], answer: int
) -> tuple[list[Timeline], dict[str, float]]:
    """All answers at once, over connections opened before; and what `cpu.measured` says."""
    clients = [await RecordingClient.open(canopy.port) for _ in batch]
    pids = {**canopy.pids(), "load": [os.getpid()]}
    body = {"model": canopy.model, "max_tokens": answer, "temperature": 0}
    body["stream_options"] = {"include_usage": True}
    requests = []
    for prompt in batch:
        asks = {**body, "prompt": prompt.text}
        requests.append(post("/v1/completions", canopy.port, canopy.key, asks))
    try:
        with cpu.measured(pids) as usage:
            for client, request in zip(clients, requests, strict=True):
                client.send(request)
            for client in clients:
                await client.ended.wait()
    finally:
        for client in clients:
            client.close()
    return [read_events(client.timeline, client.arrivals) for client in clients], usage


def read_events(timeline: Timeline, arrivals: Sequence[tuple[float, list[bytes]]]) -> Timeline:
    """Adds events, which do not say how many tokens they carry: the answer's, shared evenly."""
    times: list[float] = []
    tokens = 0
    for at, lines in arrivals:
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            for choice in event.get("choices", ()):
                if choice.get("text"):
                    times.append(at)
    for number, at in enumerate(times):
        until, before = tokens * (number + 1) // len(times), tokens * number // len(times)
        timeline.add(at, until - before)
    if not tokens and not timeline.error:
        timeline.error = "the answer ended without its count of tokens"
    return timeline
