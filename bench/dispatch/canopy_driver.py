"""Canopy's driver: the API's broker client without HTTP. `python -m … MODEL`."""

import asyncio
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from bench.dispatch import loop
from broker.client import Client
from broker.errors import NoTree, Unavailable
from broker.wire import ChatMessage, Failed, Job, Sampling

_READY_SECONDS = 30.0


def make_job(model: str, tokens: int = 1, question: str = "Hello") -> Job:
    """A job that `echo` answers with so many words."""
    return Job(
        request_id=uuid.uuid4().hex,
        model=model,
        reply_to="",  # the client fills it in
        created=time.time(),
        messages=(ChatMessage(role="user", content=question),),
        sampling=Sampling(max_tokens=tokens),
        user="bench",
        work=float(tokens),
    )


@asynccontextmanager
async def connected(amqp_url: str) -> AsyncIterator[Client]:
    """A client of the broker. Raises TimeoutError if it cannot connect."""
    client = Client(amqp_url, process=f"bench-{uuid.uuid4().hex[:8]}")
    await client.start()
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not client.connected:
                await client.changed()
        yield client
    finally:
        await client.stop()


async def request(client: Client, model: str) -> None:
    """One job, to its last frame. Raises RuntimeError if it failed."""
    async for frame in await client.submit(make_job(model)):
        if isinstance(frame, Failed):
            raise RuntimeError(frame.message)


async def main(model: str) -> None:
    async with connected(os.environ["BENCH_AMQP_URL"]) as client:
        async with asyncio.timeout(_READY_SECONDS):
            served = False
            while not served:
                try:
                    await request(client, model)
                    served = True
                except (NoTree, Unavailable):  # the tree is being made
                    await asyncio.sleep(0.1)
        await loop.serve(lambda: request(client, model))


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(sys.argv[1]))
