"""Sends jobs to a real tree at given moments, straight through the broker client, and notes each one's times."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from broker.client import Client
from broker.errors import NoTree, Unavailable
from broker.wire import ChatMessage, Failed, Job, Sampling, Start

_WORDS = "one two three four"  # said again and again, until the answer is long enough
_GRACE_SECONDS = 120.0  # beyond the last arrival, for whatever waits then


@dataclass(frozen=True, slots=True)
class Planned:
    """One job: when it is to be sent, in seconds from the beginning, and how many tokens it makes."""

    at: float
    tokens: int


@dataclass(slots=True)
class Sample:
    """What became of it, in the same seconds. `failure`: why it has no times."""

    planned: Planned
    sent: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    node: str = ""
    failure: str = ""

    @property
    def service(self) -> float:
        """Seconds from its first frame to its last, as its reader saw them."""
        return self.ended - self.started

    @property
    def in_system(self) -> float:
        """Seconds from being sent to its last frame."""
        return self.ended - self.sent

    @property
    def late(self) -> float:
        """Seconds that it was sent after its time: the fault of this generator."""
        return self.sent - self.planned.at


def tokens_drawn(mean: float, count: int, dice: random.Random) -> list[int]:
    """Exponential lengths, rounded to whole tokens and at least one."""
    return [max(1, round(dice.expovariate(1 / mean))) for _ in range(count)]


def schedule(rate: float, lengths: Sequence[int], dice: random.Random) -> list[Planned]:
    """Poisson arrivals, so many a second."""
    plan, at = [], 0.0
    for tokens in lengths:
        at += dice.expovariate(rate)
        plan.append(Planned(at, tokens))
    return plan


@asynccontextmanager
async def connected(amqp_url: str) -> AsyncIterator[Client]:
    """A client of the broker. Raises TimeoutError if it cannot connect in 10 s."""
    client = Client(amqp_url, process=f"bench-{uuid.uuid4().hex[:8]}")
    await client.start()
    try:
        async with asyncio.timeout(10):
            while not client.connected:
                await client.changed()
        yield client
    finally:
        await client.stop()


async def send_all(client: Client, model: str, plan: Sequence[Planned]) -> list[Sample]:
    """Sends every job in time and returns when all have ended. Raises TimeoutError if they do not."""
    began = time.perf_counter()
    async with asyncio.timeout(plan[-1].at * 2 + _GRACE_SECONDS), asyncio.TaskGroup() as tasks:
        sent = []
        for planned in plan:
            await asyncio.sleep(began + planned.at - time.perf_counter())
            sent.append(tasks.create_task(_ask(client, model, planned, began)))
    return [task.result() for task in sent]


async def keep_busy(client: Client, model: str, slots: int, lengths: Sequence[int]) -> list[Sample]:
    """The same without a queue: as many jobs at a time as there are slots, each sent when one has ended."""
    began = time.perf_counter()
    left = iter(lengths)

    async def one_after_the_other() -> list[Sample]:
        return [
            await _ask(client, model, Planned(time.perf_counter() - began, tokens), began)
            for tokens in left
        ]

    async with asyncio.timeout(_GRACE_SECONDS):
        rows = await asyncio.gather(*(one_after_the_other() for _ in range(slots)))
    return [sample for row in rows for sample in row]


async def _ask(client: Client, model: str, planned: Planned, began: float) -> Sample:
    sample = Sample(planned, sent=time.perf_counter() - began)
    try:
        async for frame in await client.submit(_job(model, planned.tokens)):
            if isinstance(frame, Start):
                sample.started, sample.node = time.perf_counter() - began, frame.node
            elif isinstance(frame, Failed):
                sample.failure = frame.message
    except (Unavailable, NoTree) as error:
        sample.failure = repr(error)
    sample.ended = time.perf_counter() - began
    return sample


def _job(model: str, tokens: int) -> Job:
    return Job(
        request_id=uuid.uuid4().hex,
        model=model,
        reply_to="",  # the client fills it in
        created=time.time(),
        messages=(ChatMessage(role="user", content=_WORDS),),
        sampling=Sampling(max_tokens=tokens),
        user="bench",
        work=float(tokens),
    )
