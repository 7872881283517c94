"""A driver's side: a closed loop, and the blocks it is asked for on standard input.

The standard library alone: drivers of other job queues run without Canopy's packages.
"""

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
    """Warms up, reports that it is ready, then measures blocks until standard input ends."""
    await request()
    _print({"ready": True})
    while True:
        line = await asyncio.to_thread(sys.stdin.readline)  # the loop has heartbeats to send
        if not line:
            return
        _print(asdict(await run(request, Block(**json.loads(line)))))


def serve_blocking(measure: Callable[[Block], Result]) -> None:
    """The same for a library with a loop or threads of its own."""
    measure(Block(1, 0))
    _print({"ready": True})
    for line in sys.stdin:
        _print(asdict(measure(Block(**json.loads(line)))))


def _print(answer: object) -> None:
    print(json.dumps(answer), flush=True)
