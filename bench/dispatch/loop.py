"""A driver's closed loop. The standard library alone: peers have no Canopy packages."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from time import perf_counter


@dataclass(frozen=True)
class Block:
    """What to measure: so many requests in flight, for so many seconds."""

    in_flight: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """A measured block. `seconds`: from the first request to the last answer."""

    seconds: float
    latencies_ms: list[float]


async def run(request: Callable[[], Awaitable[object]], block: Block) -> Result:
    """Each request in flight is replaced when it is answered. `request` raises what went wrong."""
    latencies: list[float] = []
    began = perf_counter()
    deadline = began + block.seconds

    async def lane() -> None:
        sent = perf_counter()
        while sent < deadline:
            await request()
            now = perf_counter()
            latencies.append((now - sent) * 1000)
            sent = now

    async with asyncio.TaskGroup() as lanes:
        for _ in range(block.in_flight):
            lanes.create_task(lane())
    return Result(perf_counter() - began, latencies)


async def serve(request: Callable[[], Awaitable[object]]) -> None:
    """Measures the blocks that lines of standard input ask for."""
    while line := await asyncio.to_thread(sys.stdin.readline):  # the loop has heartbeats to send
        result = await run(request, Block(**json.loads(line)))
        print(json.dumps(asdict(result)), flush=True)
