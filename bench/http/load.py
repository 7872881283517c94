"""The load: opens many streams, and records when their tokens arrive in the measured window."""

import asyncio
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from bench import cpu, streaming
from bench.http.lateness import Delivery, summarize
from bench.stats import Spread
from bench.streaming import StreamClient

_SETTLE = 1.0  # seconds from the last start to the window
_TICK = 0.01  # seconds between two looks at the load's own lateness
_SPARE_SECONDS = 60.0  # by which the load may exceed its plan


@dataclass(frozen=True, slots=True)
class Load:
    """What to do: begin `starts` streams a second, then measure for `seconds`."""

    port: int
    key: str
    model: str
    streams: int
    rate: float  # tokens a second, as the engine makes them
    starts: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the load."""

    delivery: Delivery
    own_lag: Spread  # lateness of this process's own timers, in milliseconds
    cpu: dict[str, float]  # processor seconds by process in the window
    busy: float  # share of all processors of the machine, whoever used them


async def run(load: Load, pids: Mapping[str, Sequence[int]]) -> Outcome:
    """Starts the streams one after the other, measures while all of them run, and leaves.

    Raises TimeoutError if the service is too far behind for that.
    """
    gc.disable()  # a collection would make the load late
    plan_seconds = load.streams / load.starts + load.seconds
    try:
        async with asyncio.timeout(plan_seconds + _SPARE_SECONDS):
            clients = await _start(load)
            await asyncio.sleep(_SETTLE)
            psutil.cpu_percent()
            with cpu.measured(pids) as usage:
                begin = time.perf_counter()
                lags = await _watch_own_timers(begin + load.seconds)
                end = time.perf_counter()
            busy = psutil.cpu_percent() / 100
    finally:
        gc.enable()
    timelines = [client.timeline for client in clients]
    for client in clients:
        if client.timeline.ended is not None:
            client.timeline.error = "ended early"
        client.abort()
    delivery = summarize(timelines, load.rate, begin, end)
    return Outcome(delivery, Spread.of(lags, 1000), usage, busy)


async def _start(load: Load) -> list[StreamClient]:
    lifetime = load.streams / load.starts + _SETTLE + load.seconds
    tokens = int(2 * lifetime * load.rate) + 1000  # no stream ends before the window does
    request = streaming.chat(load.port, load.key, load.model, tokens)
    clients: list[StreamClient] = []
    began = time.perf_counter()
    for number in range(load.streams):
        await asyncio.sleep(began + number / load.starts - time.perf_counter())
        clients.append(await StreamClient.start(load.port, request))
    return clients


async def _watch_own_timers(until: float) -> list[float]:
    """By how many seconds each of many short sleeps was too long."""
    lags = []
    now = time.perf_counter()
    while now < until:
        await asyncio.sleep(_TICK)
        woke = time.perf_counter()
        lags.append(woke - now - _TICK)
        now = woke
    return lags
