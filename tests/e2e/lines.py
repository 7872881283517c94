"""The echo engine with the lines of what it repeats (`--engine tests.e2e.lines`).

For long lists and tables. All but the last words come at once: tests wait for no long beginning.
"""

import asyncio
import re
from collections.abc import AsyncIterator

from broker.wire import Job
from worker.engines.base import Chunk
from worker.engines.echo import EchoEngine, last_message

_STREAMED = 1400  # words that come one by one


class LineEngine(EchoEngine):
    """Echo, a word a chunk, each with the space or the line's end behind it."""

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the words; see the protocol."""
        words = re.findall(r"\S+\s*", last_message(job))
        begin = max(0, len(words) - _STREAMED)
        yield Chunk(prompt_tokens=len(words))
        yield Chunk(text="".join(words[:begin]), tokens=begin)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for word in words[begin:]:
            due += self._delay
            await asyncio.sleep(due - loop.time())
            yield Chunk(text=word, tokens=1)
        yield Chunk(finish="stop")


def create(
    *, model: str, model_path: str | None, device: str, slots: int, token_delay: float
) -> LineEngine:
    """See `worker.engines.create`."""
    return LineEngine(model=model, slots=slots, token_delay=token_delay)
