"""A transformers engine on a tiny model, jobs for it, and their answers read in several ways."""

import asyncio
from pathlib import Path
from typing import Any

from broker.wire import Job, Sampling
from worker.engines import create
from worker.engines.base import Chunk, Engine


async def started(folder: Path, slots: int) -> Engine:
    engine = create(
        "transformers",
        model="tiny",
        model_path=str(folder),
        device="cpu",
        slots=slots,
        token_delay=0,
    )
    await engine.start()
    return engine


def job(prompt: str, **settings: Any) -> Job:
    delivered = settings.pop("delivered", "")
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 20, **settings})
    return Job(
        request_id="r",
        model="tiny",
        reply_to="q",
        created=0.0,
        prompt=prompt,
        sampling=sampling,
        delivered=delivered,
    )


async def read(engine: Engine, job: Job) -> list[Chunk]:
    return [chunk async for chunk in engine.run(job)]


async def reading(engine: Engine, job: Job) -> asyncio.Task[None]:
    """A task that reads the answer to its end; returns once the first chunk has come."""
    begun = asyncio.Event()

    async def run() -> None:
        async for _ in engine.run(job):
            begun.set()

    task = asyncio.create_task(run())
    await begun.wait()
    return task


async def text_of(engine: Engine, job: Job) -> str:
    return "".join(chunk.text for chunk in await read(engine, job))
