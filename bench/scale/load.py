"""Jobs at a fixed mean rate, whether or not earlier ones are answered, straight through the broker client."""

import asyncio
import random
import time
import uuid

from broker.client import Client
from broker.wire import ChatMessage, Failed, Finished, Job, Sampling, Start

JOB_SECONDS = 60.0  # no job of one word takes so long, unless something is broken
_WORD = ChatMessage(role="user", content="Hello")


class WrongPath(Exception):
    """A job failed, or ran on a node that is no leaf: nothing that is measured then means anything."""


async def one(client: Client, model: str, leaves: set[str]) -> float:
    """Seconds from the submission of a job of one token to its last frame. Raises WrongPath, Unavailable, NoTree,
    TimeoutError.
    """
    began = time.perf_counter()
    async with asyncio.timeout(JOB_SECONDS):
        async for frame in await client.submit(_job(model)):
            if isinstance(frame, Failed):
                raise WrongPath(frame.message)
            if isinstance(frame, Start) and frame.node not in leaves:
                raise WrongPath(f"a job ran on {frame.node}, above the leaves")
            if isinstance(frame, Finished):
                return time.perf_counter() - began
    raise WrongPath("a stream ended without a last frame")


async def steady(
    client: Client, model: str, leaves: set[str], count: int, rate: float, dice: random.Random
) -> list[float]:
    """`count` jobs with exponential pauses, `rate` a second in the mean; their times. Raises what `one` raises."""
    jobs: list[asyncio.Task[float]] = []
    next_at = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as together:
            for _ in range(count):
                next_at += dice.expovariate(rate)
                await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
                jobs.append(together.create_task(one(client, model, leaves)))
    except* (WrongPath, TimeoutError) as group:
        raise WrongPath(str(group.exceptions[0]) or "a job did not end") from group
    return [job.result() for job in jobs]


def _job(model: str) -> Job:
    return Job(
        request_id=uuid.uuid4().hex,
        model=model,
        reply_to="",  # the client fills it in
        created=time.time(),
        messages=(_WORD,),
        sampling=Sampling(max_tokens=1, seed=1),
        user="bench",
    )
