"""Canopy's drivers: the API's broker client, or HTTP. `python -m … MODEL [PORT]`."""

import asyncio
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from bench.dispatch import loop
from bench.errors import RequestFailed
from bench.streaming import StreamClient, chat
from broker.client import Client
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


async def drive(model: str) -> None:
    async with connected(os.environ["BENCH_AMQP_URL"]) as client:

        async def request() -> None:
            async for frame in await client.submit(make_job(model)):
                if isinstance(frame, Failed):
                    raise RequestFailed(frame.message)

        await loop.serve(request)


async def drive_http(model: str, port: int) -> None:
    """Streamed answers of one token. A request takes an idle connection, or opens one."""
    idle: list[StreamClient] = []
    content = chat(port, os.environ["BENCH_KEY"], model, 1)

    async def request() -> None:
        client = idle.pop() if idle else await StreamClient.open(port)
        client.send(content)
        await client.ended.wait()
        if client.timeline.error:
            raise RequestFailed(client.timeline.error)
        idle.append(client)

    await loop.serve(request)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if len(sys.argv) == 2:
        asyncio.run(drive(sys.argv[1]))
    else:
        asyncio.run(drive_http(sys.argv[1], int(sys.argv[2])))
