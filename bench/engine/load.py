"""The loads, and the closed loop that puts them on an engine and records when tokens arrive."""

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import aclosing

from bench.engine import lengths
from bench.engine.prompts import Request
from bench.timeline import Timeline
from broker.wire import Job
from worker.engines.base import Engine, EngineError

UNIFORM, RAGGED, PREFIX, PROMPTS, ARRIVALS = "uniform", "ragged", "prefix", "prompts", "arrivals"
LOADS = (UNIFORM, RAGGED, PREFIX, PROMPTS, ARRIVALS)
NEWCOMERS = 10
_LONG = 8  # a long prompt, in units of `--prompt`
_FEW = 4  # tokens that are asked for where the prompt is what is measured
_ROUNDS = 4  # requests of the ragged load, in units of those at once
_SHORTEST = 4  # tokens of a ragged prompt, in which a <bos> must fit
_STREAM = 512  # tokens of the streams, at most, beside which newcomers come


def requests_of(load: str, size: int, prompt: int, answer: int, context: int) -> list[Request]:
    """A load with `size` at once. In ARRIVALS, `size` - 1 streams, then the newcomers."""
    if load == RAGGED:
        return ragged(_ROUNDS * size, context, 1)
    long_prompt = _LONG * prompt
    if load == PREFIX:
        return [Request(long_prompt + prompt, answer, shared=long_prompt)] * size
    if load == PROMPTS:
        return [Request(long_prompt, _FEW)] * size
    if load == ARRIVALS:
        stream = Request(prompt, min(_STREAM, context - prompt - 1))
        return [stream] * (size - 1) + [Request(long_prompt, _FEW)] * NEWCOMERS
    return [Request(prompt, answer)] * size


def ragged(requests: int, context: int, seed: int) -> list[Request]:
    """Lengths of prompts and answers from the quantiles of answers, cut to fit `context`."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(requests):
        prompt = max(_SHORTEST, min(round(lengths.quantile(rng.random())), context // 2))
        answer = max(1, min(round(lengths.quantile(rng.random())), context - prompt - 1))
        drawn.append(Request(prompt, answer))
    return drawn


async def run_load(engine: Engine, jobs: Iterable[Job], size: int) -> list[Timeline]:
    """A closed loop: makes all requests, `size` at a time, in their order."""
    timelines: list[Timeline] = []
    queue = iter(jobs)

    async def lane() -> None:
        for job in queue:
            timelines.append(Timeline(time.perf_counter()))
            await _run_job(engine, job, timelines[-1])

    async with asyncio.TaskGroup() as lanes:
        for _ in range(size):
            lanes.create_task(lane())
    return timelines


async def _run_job(engine: Engine, job: Job, timeline: Timeline) -> None:
    """One request to its end; one that fails has an error."""
    try:
        async with aclosing(engine.run(job)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.tokens:
                    timeline.add(time.perf_counter(), chunk.tokens)
    except EngineError as error:
        timeline.error = str(error) or error.code
