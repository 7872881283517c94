"""The loads: who wants what at once. Each has a name, sizes for a GPU and for a CPU, and a run."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass

from bench.engine import lengths, reading
from bench.engine.contender import Contender
from bench.engine.prompts import Prompt, Prompts, Request
from bench.engine.reading import Reading
from bench.errors import BenchError
from bench.stats import Timeline
from worker.engines.base import EngineError

_NEWCOMERS = 10  # long prompts that come one after the other
_TURNS = 8
_SAMPLE_SECONDS = 0.02  # between two looks at the time of the host thread
_STREAM = 2048  # tokens of those who run while others come, at most
_SHORTEST = 4  # tokens of a ragged prompt, in which a <bos> must fit


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and answers."""

    prompt: int = 128
    answer: int = 256
    long: int = 4096  # a long prompt
    few: int = 64  # tokens out where the prompt is what is measured
    shared: int = 2000  # what the prompts of `prefix` and `burst` begin with
    system: int = 1000  # the same of `conversations`
    own: int = 50  # the rest of such a prompt, and of each turn
    reply: int = 128  # of a turn

    def times(self, factor: float) -> "Lengths":
        """All of them, scaled."""
        sizes = asdict(self).items()
        return Lengths(**{name: max(_SHORTEST, round(size * factor)) for name, size in sizes})


@dataclass(frozen=True, slots=True)
class Trial:
    """A contender under a load with `size` at once."""

    contender: Contender
    prompts: Prompts
    size: int
    tokens: Lengths

    async def at_once(self, requests: Sequence[Request], again: bool = False) -> list[Timeline]:
        """All at the same time. `again`: on the shared prefix of the load before."""
        prompts = self.prompts.make(requests, again=again)
        streamed = len(requests) == 1
        timelines = [Timeline() for _ in prompts]
        async with asyncio.TaskGroup() as group:
            for prompt, request, timeline in zip(prompts, requests, timelines, strict=True):
                group.create_task(self.ask(prompt, request.answer, timeline, streamed=streamed))
        return timelines

    async def ask(
        self,
        prompt: Prompt,
        answer: int,
        timeline: Timeline,
        *,
        streamed: bool,
        begun: asyncio.Event | None = None,
    ) -> tuple[str, list[int]]:
        """One request to its end; one that fails has an error. Returns the answer.

        `begun`: set with the first token, or at the end.
        """
        timeline.sent = time.perf_counter()
        text, ids = "", list[int]()
        try:
            chunks = self.contender.run(prompt, answer, streamed=streamed)
            async with aclosing(chunks):
                async for chunk in chunks:
                    if chunk.tokens:
                        timeline.add(time.perf_counter(), chunk.tokens)
                        if begun is not None:
                            begun.set()
                    text += chunk.text
                    ids += chunk.ids
        except EngineError as error:
            timeline.error = str(error) or error.code
        finally:
            if begun is not None:
                begun.set()
        return text, ids


Readings = dict[str, Reading]  # by what the name of a row has behind that of the load
Run = Callable[[Trial, Request], Awaitable[Readings]]  # gets the load's longest request


@dataclass(frozen=True, slots=True)
class Load:
    """A line of LOADS. `beside`: how many come on top of so many at once."""

    gpu_sizes: tuple[int, ...]
    cpu_sizes: tuple[int, ...]
    run: Run
    longest: Callable[[Lengths], Request]
    beside: Callable[[int], int] = lambda size: 0


async def _at_once(trial: Trial, request: Request) -> Readings:
    return {"": await _read(trial, [request] * trial.size)}


async def _ragged(trial: Trial, _request: Request) -> Readings:
    return {"": await _read(trial, ragged(trial.size, trial.contender.context, 1))}


async def _prefix(trial: Trial, request: Request) -> Readings:
    requests = [request] * trial.size
    new = await _read(trial, requests)
    return {", new": new, ", again": await _read(trial, requests, again=True)}


async def _read(trial: Trial, requests: list[Request], again: bool = False) -> Reading:
    samples: list[tuple[float, float]] = []
    sampling = asyncio.create_task(sample_host(trial.contender, samples))
    timelines = await trial.at_once(requests, again)
    sampling.cancel()
    return reading.read(timelines, sum(request.prompt for request in requests), samples)


async def sample_host(contender: Contender, samples: list[tuple[float, float]]) -> None:
    """Adds moments and the processor seconds of its host thread, while those are known."""
    while (seconds := contender.host_seconds()) is not None:
        samples.append((time.perf_counter(), seconds))
        await asyncio.sleep(_SAMPLE_SECONDS)


async def _conversations(trial: Trial, _longest: Request) -> Readings:
    """Each goes on as soon as it is answered."""
    tokens = trial.tokens
    first = Request(tokens.system + tokens.own, tokens.reply, shared=tokens.system)
    openings = trial.prompts.make([first] * trial.size)
    timelines: list[Timeline] = []

    async def converse(prompt: Prompt) -> None:
        for _ in range(_TURNS):
            timelines.append(Timeline())
            answer = await trial.ask(prompt, tokens.reply, timelines[-1], streamed=False)
            prompt = trial.prompts.next_turn(prompt, *answer, tokens.own)

    async with asyncio.TaskGroup() as group:
        for prompt in openings:
            group.create_task(converse(prompt))
    return {"": reading.read(timelines)}


async def _arrivals(trial: Trial, request: Request) -> Readings:
    async def one_by_one() -> list[Timeline]:
        timelines = []
        for _ in range(_NEWCOMERS):
            timelines += await trial.at_once([request])
        return timelines

    return {"": await _beside_streams(trial, one_by_one)}


async def _burst(trial: Trial, request: Request) -> Readings:
    requests = [request] * burst_of(trial.size)
    return {"": await _beside_streams(trial, lambda: trial.at_once(requests))}


async def _beside_streams(trial: Trial, arrive: Callable[[], Awaitable[list[Timeline]]]) -> Reading:
    """`size` streams, which end with the last of the newcomers. Raises BenchError."""
    tokens = trial.tokens
    answer = min(_STREAM, trial.contender.context - tokens.prompt - 1)
    prompts = trial.prompts.make([Request(tokens.prompt, answer)] * trial.size)
    streams = [Timeline() for _ in prompts]
    begun = [asyncio.Event() for _ in prompts]
    tasks = []
    for prompt, stream, event in zip(prompts, streams, begun, strict=True):
        asking = trial.ask(prompt, answer, stream, streamed=True, begun=event)
        tasks.append(asyncio.create_task(asking))
    try:
        for event in begun:
            await event.wait()
        newcomers = await arrive()
        if any(task.done() for task in tasks):
            raise BenchError("streams ended while newcomers came: more --context, or fewer of them")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return reading.read_arrivals(streams, newcomers)


def burst_of(size: int) -> int:
    """How many arrive together beside `size` streams."""
    return max(1, size // 2)


def ragged(requests: int, context: int, seed: int) -> list[Request]:
    """Lengths of prompts and answers from the quantiles of answers, cut to fit `context`."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(requests):
        prompt = max(_SHORTEST, min(round(lengths.quantile(rng.random())), context // 2))
        answer = max(1, min(round(lengths.quantile(rng.random())), context - prompt - 1))
        drawn.append(Request(prompt, answer))
    return drawn


def _uniform(tokens: Lengths) -> Request:
    return Request(tokens.prompt, tokens.answer)


def _long(tokens: Lengths) -> Request:
    return Request(tokens.long, tokens.few)


def _on_prefix(tokens: Lengths) -> Request:
    return Request(tokens.shared + tokens.own, tokens.few, shared=tokens.shared)


def _last_turn(tokens: Lengths) -> Request:
    return Request(tokens.system + _TURNS * (tokens.own + tokens.reply), tokens.reply)


def _newcomer(tokens: Lengths) -> Request:
    return Request(tokens.long, _SHORTEST)


def _newcomer_on_prefix(tokens: Lengths) -> Request:
    return Request(tokens.shared + tokens.own, _SHORTEST, shared=tokens.shared)


def _short(_tokens: Lengths) -> Request:
    return Request(_SHORTEST, _SHORTEST)


UNIFORM = "uniform"
SUMMARIES = {
    UNIFORM: "N requests at once: 128 tokens in, 256 out",
    "ragged": "N at once, with the lengths of a published trace, tail included",
    "prompts": "N long prompts: 4,096 in, 64 out; N = 1: their TTFT",
    "prefix": "N on a shared prefix of 2,000 that is new, then once more; 50 own, 64 out",
    "conversations": "N of 8 turns on 1,000 shared tokens; 50 own a turn, 128 out",
    "arrivals": "pauses of N streams while 10 prompts of 4,096 come one by one, and their TTFT",
    "burst": "pauses of N streams while N / 2 requests on a new shared prefix come at once",
}
# sizes on a GPU and on a CPU, what is done, the longest request
LOADS = {
    UNIFORM: Load((1, 8, 32, 128, 256, 512, 1024), (1, 4, 16), _at_once, _uniform),
    "ragged": Load((960,), (16,), _ragged, _short),
    "prompts": Load((1, 32), (1, 4), _at_once, _long),
    "prefix": Load((256,), (16,), _prefix, _on_prefix),
    "conversations": Load((64,), (4,), _conversations, _last_turn),
    "arrivals": Load((128,), (4,), _arrivals, _newcomer, beside=lambda size: 1),
    "burst": Load((128,), (8,), _burst, _newcomer_on_prefix, beside=burst_of),
}
