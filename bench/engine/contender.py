"""Who is measured: Canopy's engine here, others in the modules of `peers`."""

import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Protocol

from bench.engine.prompts import Prompt
from broker.wire import Job, Sampling
from worker.engines.base import Chunk, Engine


class Contender(Protocol):
    """An engine under a load. `context` is known once `start` has returned."""

    name: str
    context: int  # tokens of a prompt and its answer, at most

    def host_seconds(self) -> float | None:
        """Processor time of the thread that queues the steps, where that is known."""
        return None

    async def start(self) -> str:
        """Returns a note about it. Raises NotStarted, EngineUnavailable."""

    async def stop(self) -> None:
        """Frees what it has."""

    def run(self, prompt: Prompt, answer: int, *, streamed: bool) -> AsyncGenerator[Chunk]:
        """A greedy answer of so many tokens. Unless `streamed` it may come as a whole."""


class CanopyEngine:
    """The engine through its protocol, in this process."""

    name = "engine"
    context = 0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._count = 0

    def host_seconds(self) -> float | None:
        for thread in threading.enumerate():
            if thread.name == "decoder" and thread.ident is not None:
                with suppress(OSError):  # it ends
                    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        return None

    async def start(self) -> str:
        began = time.perf_counter()
        await self._engine.start()
        self.context = self._engine.context_length
        seconds = time.perf_counter() - began
        return f"ready after {seconds:.1f} s, {self._engine.slots} slots of {self.context} tokens"

    async def stop(self) -> None:
        await self._engine.stop()

    async def run(self, prompt: Prompt, answer: int, *, streamed: bool) -> AsyncGenerator[Chunk]:
        """It streams whether asked to or not."""
        self._count += 1
        job = Job(
            request_id=f"bench-{self._count}",
            model=self._engine.model,
            reply_to="bench",
            created=time.time(),
            prompt_ids=prompt.ids,
            sampling=Sampling(max_tokens=answer, temperature=0.0),
        )
        chunks = self._engine.run(job)
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk
