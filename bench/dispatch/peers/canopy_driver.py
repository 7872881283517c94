"""Canopy: its driver, the API's broker client without HTTP. `python -m ... MODEL`."""

import asyncio
import os
import sys
import time
import uuid

import structlog

from bench.dispatch import loop
from broker.client import Client
from broker.errors import NoTree, Unavailable
from broker.wire import ChatMessage, Failed, Job, Sampling

_READY_SECONDS = 30.0


def job(model: str) -> Job:
    """A job of one token."""
    return Job(
        request_id=uuid.uuid4().hex,
        model=model,
        reply_to="",  # the client fills it in
        created=time.time(),
        messages=(ChatMessage(role="user", content="Hello"),),
        sampling=Sampling(max_tokens=1),
        user="bench",
    )


async def ask(client: Client, model: str) -> None:
    """One job, to its last frame. Raises RuntimeError if it failed."""
    async for frame in await client.submit(job(model)):
        if isinstance(frame, Failed):
            raise RuntimeError(frame.message)


async def until_served(client: Client, model: str) -> None:
    """Returns when the tree has answered once. Raises TimeoutError."""
    async with asyncio.timeout(_READY_SECONDS):
        while True:
            try:
                return await ask(client, model)
            except (NoTree, Unavailable):  # the tree or the connection is being made
                await asyncio.sleep(0.1)


async def main(model: str) -> None:
    """Drives until standard input ends."""
    client = Client(os.environ["BENCH_AMQP_URL"], process=f"bench-{uuid.uuid4().hex[:8]}")
    await client.start()
    try:
        await until_served(client, model)
        await loop.serve(lambda: ask(client, model))
    finally:
        await client.stop()


if __name__ == "__main__":
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )  # standard output is for answers
    asyncio.run(main(sys.argv[1]))
