"""Jobs, and an openai engine before a scripted server, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker.wire import (
    ChatMessage,
    Job,
    Sampling,
)
from tests.unit.engine.upstream import (
    Asked,
    Reply,
    Script,
    Upstream,
)
from worker.engines import create
from worker.engines.base import (
    Chunk,
    Engine,
    EngineError,
)

KEY = "a-key-of-the-tests"


def chat(*said: str, delivered: str = "", **settings: Any) -> Job:
    messages = tuple(ChatMessage(role="user", content=text) for text in said or ("hello there",))
    return Job(
        request_id="r", model="near", reply_to="q", created=0, messages=messages,
        sampling=Sampling(**{"seed": 7, **settings}), delivered=delivered,
    )  # fmt: skip


def text_job(prompt: str, delivered: str = "", **settings: Any) -> Job:
    return Job(
        request_id="r", model="near", reply_to="q", created=0, prompt=prompt,
        sampling=Sampling(**{"seed": 7, **settings}), delivered=delivered,
    )  # fmt: skip


def engine_for(
    url: str, *, slots: int = 4, upstream_model: str = "", model: str = "near"
) -> Engine:
    return create(
        "openai", model=model, model_path=None, device="auto", slots=slots, token_delay=0,
        upstream=url, upstream_model=upstream_model,
    )  # fmt: skip


@asynccontextmanager
async def before(
    *scripts: Script, models: Script | None = None, slots: int = 4
) -> AsyncIterator[tuple[Engine, Upstream]]:
    """A started engine, and the server it stands before."""
    async with Upstream(*scripts, models=models) as upstream:
        engine = engine_for(upstream.url, slots=slots)
        await engine.start()
        try:
            yield engine, upstream
        finally:
            await engine.stop()


async def read(engine: Engine, job: Job) -> list[Chunk]:
    async with asyncio.timeout(10):
        return [chunk async for chunk in engine.run(job)]


def whole(chunks: list[Chunk]) -> tuple[str, int, str | None]:
    """Text, tokens and finish of an answer whose chunks are as the protocol says."""
    assert not chunks[0].text
    assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return (
        "".join(chunk.text for chunk in chunks),
        sum(chunk.tokens for chunk in chunks),
        chunks[-1].finish,
    )


async def error_of(engine: Engine, job: Job) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await read(engine, job)
    return caught.value


class Holding:
    """A script that says `texts` and then waits for the client to leave."""

    def __init__(self, *texts: str, head: bool = True) -> None:
        self._texts = texts
        self._head = head
        self.there = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, asked: Asked, reply: Reply) -> None:
        if self._head:
            await reply.begin()
        await reply.say(*self._texts)
        self.there.set()
        await reply.gone.wait()
        self.left.set()


async def wait_for(event: asyncio.Event) -> None:
    async with asyncio.timeout(30):
        await event.wait()


async def cut_off(asked: Asked, reply: Reply) -> None:
    await reply.begin()
    await reply.say("half an")
