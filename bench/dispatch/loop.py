"""A driver's side of the measurement: a closed loop, and the questions it is asked on standard input.

The standard library alone: drivers of other job queues run in an environment that has nothing of Canopy's.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter


@dataclass(frozen=True)
class Question:
    """So many requests under way at any time, for so many seconds, and then to the last answer."""

    in_flight: int
    seconds: float


@dataclass(frozen=True)
class Block:
    """One closed loop, measured. `seconds`: from the first request to the last answer."""

    seconds: float
    latencies_ms: list[float]


Ask = Callable[[], Awaitable[object]]


async def closed(ask: Ask, question: Question) -> Block:
    """As many lanes as requests are under way; each asks again when it has its answer. `ask` raises what went wrong."""
    latencies: list[float] = []
    began = perf_counter()
    until = began + question.seconds

    async def lane() -> None:
        while (asked := perf_counter()) < until:
            await ask()
            latencies.append((perf_counter() - asked) * 1000)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(question.in_flight):
            lanes.create_task(lane())
    return Block(perf_counter() - began, latencies)


async def serve(ask: Ask, pids: Sequence[int] = ()) -> None:
    """Says that it is ready, then answers questions until standard input ends. `pids`: of helpers it has started."""
    await ask()
    _say({"pids": list(pids)})
    while line := await asyncio.to_thread(
        sys.stdin.readline
    ):  # beside the loop, which has heartbeats to send
        _say(asdict(await closed(ask, Question(**json.loads(line)))))


def serve_blocking(ask_one: Callable[[], object], measure: Callable[[Question], Block]) -> None:
    """The same for a library that has its own loop or threads."""
    ask_one()
    _say({"pids": []})
    for line in sys.stdin:
        _say(asdict(measure(Question(**json.loads(line)))))


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)
