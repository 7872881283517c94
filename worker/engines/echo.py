"""The echo engine: repeats the last user message's words, a token a word, until `max_tokens`.

No model and no computing: for tests, and to measure everything around an engine.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

from broker.wire import FinishReason, Job
from worker.engines.base import Chunk
from worker.engines.stop_filter import StopFilter

_BURST = 256  # words a chunk without delay; between chunks the event loop gets its turn, and a cancel its effect


class EchoEngine:
    """Keeps the `Engine` protocol."""

    device = "none"
    context_length = 0  # there is no limit
    warning = ""
    warm = True  # nothing is compiled, nothing computed
    stuck = False

    def __init__(self, *, model: str, slots: int, token_delay: float) -> None:
        self.name = "echo"
        self.model = model
        self.slots = slots
        self._delay = token_delay
        self._burst = 1 if token_delay else _BURST

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to give back: runs hold no resources."""

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the words; see the protocol."""
        script = _Script(job)
        yield Chunk(prompt_tokens=script.prompt_tokens, tokens=script.tokens_delivered)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for chunk in script.chunks(self._burst):
            due += (
                self._delay
            )  # and not so long after the last one: what a busy loop adds each time would add up
            await asyncio.sleep(due - loop.time())
            yield chunk

    reuse = (0, 0)  # a prompt is not read here

    def stalled(self) -> float:
        """Never: there are no steps."""
        return 0.0


class _Script:
    """What is said in answer to one job, cut into chunks."""

    def __init__(self, job: Job) -> None:
        said = last_said(job)
        self._words = said.split()
        self.prompt_tokens = _count(job)
        wanted = job.sampling.max_tokens if self._words else None
        self._total = len(self._words) if wanted is None else wanted
        self._ends: FinishReason = "stop" if wanted is None else "length"
        self._stops = StopFilter(job.sampling.stop)
        self._has_stops = bool(job.sampling.stop)
        self.tokens_delivered, self._cut = self._skip(len(job.delivered))

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Chunks of up to `size` words; the last one carries the finish reason."""
        for start in range(self.tokens_delivered, self._total, size):
            text, tokens = self._said(list(self._pieces(start, min(start + size, self._total))))
            if self._stops.stopped:
                yield Chunk(text=text, tokens=tokens, finish="stop")
                return
            if start + size >= self._total:
                yield Chunk(text=text + self._stops.flush(), tokens=tokens, finish=self._ends)
                return
            yield Chunk(text=text, tokens=tokens)
        yield Chunk(finish=self._ends)

    def _said(self, burst: list[str]) -> tuple[str, int]:
        """What of these words is shown, and how many of them it took until a stop string was complete."""
        burst[0], self._cut = burst[0][self._cut :], 0
        if not self._has_stops:
            return "".join(burst), len(burst)
        text = ""
        for count, piece in enumerate(burst, 1):
            text += self._stops.push(piece)
            if self._stops.stopped:
                return text, count
        return text, len(burst)

    def _pieces(self, start: int, end: int) -> Iterator[str]:
        for index in range(start, end):
            word = self._words[index % len(self._words)]
            yield word if index == 0 else f" {word}"

    def _skip(self, characters: int) -> tuple[int, int]:
        """Whole words within what the reader already has, and how far it reaches into the next one."""
        words = 0
        for piece in self._pieces(0, self._total):
            if characters < len(piece):
                return words, characters
            characters -= len(piece)
            words += 1
        return words, 0


def last_said(job: Job) -> str:
    """The text to repeat: the prompt, or the last user message (any last message if no user spoke)."""
    if job.messages is None:
        return job.prompt or ""
    by_user = [message.content for message in job.messages if message.role == "user"]
    return (by_user or [message.content for message in job.messages] or [""])[-1]


def _count(job: Job) -> int:
    """Words the job brought along, standing in for prompt tokens."""
    texts = (
        [job.prompt or ""]
        if job.messages is None
        else [message.content for message in job.messages]
    )
    return sum(len(text.split()) for text in texts)


def create(
    *, model: str, model_path: str | None, device: str, slots: int, token_delay: float
) -> EchoEngine:
    """For the table in `worker.engines`; it has no model and no device."""
    return EchoEngine(model=model, slots=slots, token_delay=token_delay)
