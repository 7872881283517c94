"""The loads, and the coroutines that put them on an engine and record when tokens arrive."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from bench.engine.prompts import Prompts
from bench.policy.simulation import lengths
from bench.timeline import Timeline
from broker.wire import Job
from worker.engines.base import Engine, EngineError

_SHORTEST = 4  # tokens of a prompt, in which a <bos> must fit
NEWCOMER_ANSWER = 4  # tokens that a newcomer asks for
_FIRST_TOKENS = 4  # that every stream has had before the first newcomer
_PAUSE = 0.15  # mean seconds between two newcomers, exponential


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: tokens in, tokens out, and when, in seconds from the start of the load."""

    prompt: int
    answer: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Streams that ran all the time, and requests that came one at a time meanwhile."""

    streams: list[Timeline]
    newcomers: list[Timeline]


def uniform(requests: int, prompt: int, answer: int) -> list[Ask]:
    return [Ask(prompt, answer)] * requests


def ragged(requests: int, context: int, seed: int, rate: float | None = None) -> list[Ask]:
    """Lengths from the quantiles of a published trace, cut to fit `context`.

    The trace gives answers; prompts are drawn from the same quantiles. `rate`: requests a second,
    Poisson; without it all are there from the start.
    """
    rng = random.Random(seed)
    at = 0.0
    asks = []
    for _ in range(requests):
        prompt = max(_SHORTEST, min(round(lengths.quantile(rng.random())), context // 2))
        answer = max(1, min(round(lengths.quantile(rng.random())), context - prompt - 1))
        if rate:
            at += rng.expovariate(rate)
        asks.append(Ask(prompt, answer, at))
    return asks


async def run_load(
    engine: Engine, prompts: Prompts, asks: Sequence[Ask], concurrency: int
) -> list[Timeline]:
    """Makes all requests, at most `concurrency` at a time, each as soon as it is due.

    One that has to wait for its turn waits within its TTFT, if it was due at a certain time.
    """
    jobs = [prompts.job(ask.prompt, ask.answer) for ask in asks]
    timelines = [Timeline() for _ in asks]
    began = time.perf_counter()
    queue = iter(zip(asks, jobs, timelines, strict=True))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(concurrency, len(asks))):
            tasks.create_task(_work(engine, queue, began))
    return timelines


async def run_arrivals(
    engine: Engine,
    prompts: Prompts,
    streams: Ask,
    count: int,
    newcomer: Ask,
    newcomers: int,
    seed: int,
) -> Arrivals:
    """`count` streams run, again and again; then newcomers come one after the other.

    Each newcomer has ended when the next one comes. Raises what the engine raises for a stream.
    """
    timelines: list[Timeline] = []
    decoding = asyncio.Semaphore(0)  # released by each stream once it is past its first tokens
    jobs = [prompts.job(streams.prompt, streams.answer) for _ in range(count)]
    late_jobs = [prompts.job(newcomer.prompt, newcomer.answer) for _ in range(newcomers)]
    late = [Timeline() for _ in late_jobs]
    rng = random.Random(seed)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_stream(engine, job, timelines, decoding)) for job in jobs]
        for _ in tasks:
            await decoding.acquire()
        for job, timeline in zip(late_jobs, late, strict=True):
            await asyncio.sleep(rng.expovariate(1 / _PAUSE))  # out of step with the engine
            await run_job(engine, job, timeline)
        for task in tasks:
            task.cancel()
    return Arrivals(timelines, late)


async def run_job(engine: Engine, job: Job, timeline: Timeline) -> None:
    """One request, from `timeline.sent`, or now if that is not set, to its end."""
    timeline.sent = timeline.sent or time.perf_counter()
    try:
        async with aclosing(engine.run(job)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.tokens:
                    timeline.add(time.perf_counter(), chunk.tokens)
    except EngineError as error:
        timeline.error = str(error) or error.code


async def _work(engine: Engine, queue: Iterator[tuple[Ask, Job, Timeline]], began: float) -> None:
    for ask, job, timeline in queue:
        if ask.at:
            timeline.sent = began + ask.at
            await asyncio.sleep(timeline.sent - time.perf_counter())
        await run_job(engine, job, timeline)


async def _stream(
    engine: Engine, job: Job, timelines: list[Timeline], decoding: asyncio.Semaphore
) -> None:
    is_decoding = False
    while True:
        timeline = Timeline(time.perf_counter())
        timelines.append(timeline)
        async with aclosing(engine.run(job)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.tokens:
                    timeline.add(time.perf_counter(), chunk.tokens)
                if not is_decoding and timeline.tokens >= _FIRST_TOKENS:
                    is_decoding = True
                    decoding.release()
