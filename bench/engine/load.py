"""The loads, and the coroutines that put them on an engine and write down when each chunk came."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from bench.engine.prompts import Prompts
from bench.engine.reading import Ask, Track
from bench.policy.simulation import lengths
from broker.wire import Job
from worker.engines.base import Engine, EngineError

_SHORTEST = 4  # tokens: of a prompt, beside which a <bos> must fit
ARRIVAL_ANSWER = 4  # tokens that a newcomer asks for
BETWEEN = 0.15  # seconds between two newcomers, mean of an exponential law
FIRST_TOKENS = 4  # that every running stream has had before the first newcomer


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Streams that ran all the time, and requests that came one at a time meanwhile."""

    running: list[Track]
    newcomers: list[Track]


def uniform(requests: int, prompt: int, answer: int) -> list[Ask]:
    """All alike."""
    return [Ask(prompt, answer)] * requests


def ragged(requests: int, context: int, seed: int, rate: float | None = None) -> list[Ask]:
    """Lengths of a published trace, answers and (for want of their quantiles) prompts alike, cut to fit `context`.

    `rate`: requests a second, with exponential times between them; without it all are there from the start.
    """
    drawn = random.Random(seed)
    at, asks = 0.0, []
    for _ in range(requests):
        prompt = max(_SHORTEST, min(round(lengths.quantile(drawn.random())), context // 2))
        answer = max(1, min(round(lengths.quantile(drawn.random())), context - prompt - 1))
        at += drawn.expovariate(rate) if rate else 0.0
        asks.append(Ask(prompt, answer, at))
    return asks


async def run_load(
    engine: Engine, prompts: Prompts, asks: Sequence[Ask], at_once: int, temperature: float
) -> list[Track]:
    """Makes all requests, at most `at_once` at the same time, each as soon as it is due. A request that has to wait for
    a place waits within its TTFT, if it was due at a certain time.
    """
    jobs = [
        prompts.job(ask.prompt, ask.answer, temperature) for ask in asks
    ]  # before the clock runs
    tracks = [Track(ask) for ask in asks]
    begun = time.perf_counter()
    left = iter(zip(jobs, tracks, strict=True))
    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(asks))):
            group.create_task(_work(engine, left, begun))
    return tracks


async def run_arrivals(
    engine: Engine, prompts: Prompts, *, streams: int, prompt: int, arriving: int, newcomers: int, context: int,
    seed: int, temperature: float,
) -> Arrivals:  # fmt: skip
    """`streams` long answers run; then `newcomers` requests of `arriving` tokens come one after the other.

    A stream that reaches the end of its context begins again. Each newcomer has ended when the next one comes.
    """
    answer = context - prompt - 1
    running: list[Track] = []
    decoding = asyncio.Semaphore(0)  # released once by each stream that is past its first tokens
    jobs = [prompts.job(prompt, answer, temperature) for _ in range(streams)]
    late = [prompts.job(arriving, ARRIVAL_ANSWER, temperature) for _ in range(newcomers)]
    arrived = [Track(Ask(arriving, ARRIVAL_ANSWER)) for _ in range(newcomers)]
    drawn = random.Random(seed)
    async with asyncio.TaskGroup() as group:  # a stream that fails ends the rest
        tasks = [group.create_task(_keep_running(engine, job, running, decoding)) for job in jobs]
        for _ in range(streams):
            await decoding.acquire()
        for job, track in zip(late, arrived, strict=True):
            await asyncio.sleep(
                drawn.expovariate(1 / BETWEEN)
            )  # arrivals keep no step with the engine
            await ask(engine, job, track)
        for task in tasks:
            task.cancel()
    return Arrivals(running, arrived)


async def ask(engine: Engine, job: Job, track: Track) -> None:
    """One request, from `track.asked`, which is now unless it is set, to its end."""
    track.asked = track.asked or time.perf_counter()
    try:
        async with aclosing(engine.run(job)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.tokens:
                    track.took(time.perf_counter(), chunk.tokens)
                track.prompt_tokens = chunk.prompt_tokens or track.prompt_tokens
    except EngineError as error:
        track.error = str(error) or error.code


async def _work(engine: Engine, left: Iterator[tuple[Job, Track]], begun: float) -> None:
    """One place: makes request after request."""
    for job, track in left:
        if track.ask.at:
            due = begun + track.ask.at
            await asyncio.sleep(due - time.perf_counter())
            track.asked = due
        await ask(engine, job, track)


async def _keep_running(
    engine: Engine, job: Job, running: list[Track], decoding: asyncio.Semaphore
) -> None:
    """A stream that never ends. Raises EngineError if the engine refuses it."""
    told = False
    while True:
        track = Track(Ask(0, job.sampling.max_tokens or 0))
        running.append(track)
        track.asked = time.perf_counter()
        async with aclosing(engine.run(job)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.tokens:
                    track.took(time.perf_counter(), chunk.tokens)
                if not told and track.tokens >= FIRST_TOKENS:
                    told = True
                    decoding.release()
