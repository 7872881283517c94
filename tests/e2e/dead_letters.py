"""Dead letters in the broker of an instance, put there and counted beside the API."""

import asyncio
import time
import uuid
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from broker.amqp import AmqpSession
from broker.encoding import encode
from broker.wire import ChatMessage, Job, Sampling
from tests.instance import Instance
from topology import names

T = TypeVar("T")


def run(work: Coroutine[object, object, T]) -> T:
    """In a thread, as Playwright has an event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def dead_job(text: str, model: str = "echo", user: str = "reader") -> Job:
    """A job that lost three runs."""
    return Job(
        request_id=uuid.uuid4().hex,
        model=model,
        reply_to=names.reply("gone"),
        created=time.time() - 3600,
        messages=(ChatMessage(role="user", content=text),),
        sampling=Sampling(max_tokens=3),
        user=user,
        attempt=4,
        trail=("root", "n1"),
    )


def bury(instance: Instance, *letters: Job | bytes) -> None:
    """Puts letters into the queue, as a node does."""
    headers: dict[str, object] = {
        "reason": "given up after 3 lost runs",
        "node": "n1",
        "at": str(time.time() - 90),
        "trail": ["root"],
        "faults": ["n1 died while it ran"] * 3,
    }

    async def publish() -> None:
        session = await AmqpSession.open(instance.broker.amqp["admin"], "test")
        for letter in letters:
            body = letter if isinstance(letter, bytes) else encode(letter)
            assert await session.publish(
                "", names.DEAD_QUEUE, body, persistent=True, headers=headers
            )
        await session.close()

    run(publish())


def depth(instance: Instance) -> int:
    """The letters in the queue, by the broker's own count."""

    async def ask() -> int | None:
        session = await AmqpSession.open(instance.broker.amqp["admin"], "test")
        try:
            return await session.depth(names.DEAD_QUEUE)
        finally:
            await session.close()

    return run(ask()) or 0
