"""The echo engine: repeats the last user message's words, one per token, until `max_tokens`.

An answer that must keep a grammar is a small text that does, instead of the words, and with tools
it may call one (echo_calls.py). With `--task embed` or `--task score` it makes vectors or scores of
the words.

No model and no computing: for tests, and to measure everything around an engine.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Iterator

from broker.wire import FinishReason, Job, Pooling, Sampling, Task, TokenLogprob
from worker.engines import echo_calls, echo_instance, echo_vectors
from worker.engines.base import Chunk, EngineUnavailable, Footprint, Markup, check_task
from worker.engines.stop_filter import StopFilter

_GENERATES: tuple[Task, ...] = ("generate", "tokenize")
_PIECE = re.compile(r"\w+|\W")  # a token of an answer that is no echo
_WORD = re.compile(r"\s*\S+")
_BURST = 256  # words per chunk without delay; between chunks the event loop may run a cancel


class EchoEngine:
    """Keeps the `Engine` protocol."""

    device = "none"
    context_length = 0  # unlimited
    warning = ""
    warm = True  # nothing to compile
    stuck = False
    reuse = (0, 0)  # there is no prefill
    footprint = Footprint()  # there is no model

    def __init__(
        self, *, model: str, slots: int, token_delay: float, tasks: tuple[Task, ...] = _GENERATES
    ) -> None:
        self.name = "echo"
        self.model = model
        self.tasks = tasks
        self.slots = slots
        self._delay = token_delay
        self._burst = _BURST
        if token_delay:
            self._burst = 1

    @property
    def usable_slots(self) -> int:
        """All of them."""
        return self.slots

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to free: runs hold no resources."""

    def markup(self, job: Job) -> Markup:
        """See the protocol."""
        if echo_calls.calls_tools(job):
            return Markup(tool_format=echo_calls.TOOL_FORMAT)
        return Markup()

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the words; see the protocol."""
        check_task(job, *self.tasks)
        if job.pooling is not None:
            async for chunk in self._pool(job, job.pooling):
                yield chunk
            return
        if job.task == "tokenize":
            for chunk in _tokenized(job):
                yield chunk
            return
        instance: str | None = None
        if job.sampling.grammar is not None or echo_calls.calls_tools(job):
            instance = await asyncio.to_thread(_instance, job)
        answer = _EchoedAnswer(job, instance)
        yield Chunk(prompt_tokens=answer.prompt_tokens, tokens=answer.tokens_delivered)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for chunk in answer.chunks(self._burst):
            due += self._delay  # from the previous due time, so that a busy loop adds no drift
            await asyncio.sleep(due - loop.time())
            yield chunk

    async def _pool(self, job: Job, pooling: Pooling) -> AsyncIterator[Chunk]:
        yield Chunk(prompt_tokens=echo_vectors.count_words(pooling))
        for index, row in enumerate(echo_vectors.rows(job.task, pooling)):
            if index >= job.delivered_inputs:
                await asyncio.sleep(self._delay)
                yield Chunk(rows=(row,))
        yield Chunk(finish="stop")

    def stalled(self) -> float:
        """Never: there are no steps."""
        return 0.0


class _EchoedAnswer:
    """The answer to one job, cut into chunks."""

    def __init__(self, job: Job, instance: str | None) -> None:
        """`instance`: the text to say, instead of the words."""
        self._words = last_message(job).split()
        self._pieces: list[str] | None = None
        rest = _rest(job, " ".join(self._words))
        if instance is not None:
            self._pieces = _PIECE.findall(instance)
        elif rest is not None:
            self._pieces = _WORD.findall(rest)
        self.prompt_tokens = len(_words(job))
        self._total, self._finish = self._length(job.sampling)
        self._stops = StopFilter(job.sampling.stop, include_stop=job.sampling.include_stop)
        self._has_stops = bool(job.sampling.stop)
        self.tokens_delivered, self._skip = self._delivered(len(job.delivered))

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Chunks of up to `size` words; the last one carries the finish reason."""
        for start in range(self.tokens_delivered, self._total, size):
            end = min(start + size, self._total)
            text, tokens = self._shown(list(self._tokens(start, end)))
            if self._stops.stopped:
                yield Chunk(text=text, tokens=tokens, finish="stop")
                return
            if end >= self._total:
                yield Chunk(text=text + self._stops.flush(), tokens=tokens, finish=self._finish)
                return
            yield Chunk(text=text, tokens=tokens)
        yield Chunk(finish=self._finish)

    def _length(self, sampling: Sampling) -> tuple[int, FinishReason]:
        """How many words the answer has, and why it ends there."""
        if self._pieces is not None:
            length, most = len(self._pieces), sampling.max_tokens
            if most is not None and length > most:
                return most, "length"
            return length, "stop"
        if not self._words:
            return 0, "stop"
        if sampling.max_tokens is None:
            return max(len(self._words), sampling.min_tokens), "stop"
        return sampling.max_tokens, "length"

    def _shown(self, tokens: list[str]) -> tuple[str, int]:
        """The text to show, and how many tokens it takes to complete a stop string."""
        tokens[0], self._skip = tokens[0][self._skip :], 0
        if not self._has_stops:
            return "".join(tokens), len(tokens)
        text = ""
        for count, token in enumerate(tokens, 1):
            text += self._stops.push(token)
            if self._stops.stopped:
                return text, count
        return text, len(tokens)

    def _tokens(self, start: int, end: int) -> Iterator[str]:
        if self._pieces is not None:
            yield from self._pieces[start:end]
            return
        for index in range(start, end):
            word = self._words[index % len(self._words)]
            if index == 0:
                yield word
            else:
                yield f" {word}"

    def _delivered(self, characters: int) -> tuple[int, int]:
        """Whole tokens that the reader has already, and its characters of the next one."""
        count = 0
        for token in self._tokens(0, self._total):
            if characters < len(token):
                return count, characters
            characters -= len(token)
            count += 1
        return count, 0


def _instance(job: Job) -> str | None:
    """What the answer says instead of an echo, if that is so. Blocks. Raises InvalidRequest."""
    call = echo_calls.call_text(job)
    if call is None and job.sampling.grammar is not None:
        return echo_instance.instance(job.sampling.grammar)
    return call


def _rest(job: Job, text: str) -> str | None:
    """What is left of `text` behind a last message that is to be continued; None: all of it."""
    if not job.continue_final_message or not job.messages:
        return None
    begun = job.messages[-1]
    if begun.role != "assistant" or not text.startswith(begun.content):
        return None
    return text.removeprefix(begun.content)


def last_message(job: Job) -> str:
    """The text to repeat: the prompt, or the last message of a user or a tool, or any last one."""
    if job.messages is None:
        return _prompt(job)
    for message in reversed(job.messages):
        if message.role in ("user", "tool"):
            return message.content
    if not job.messages:
        return ""
    return job.messages[-1].content


def _prompt(job: Job) -> str:
    """Ids stand for themselves, as there is no vocabulary."""
    if job.prompt_ids:
        return " ".join(map(str, job.prompt_ids))
    return job.prompt or ""


def _words(job: Job) -> list[str]:
    """Of the whole job, standing in for the prompt's tokens."""
    if job.messages is None:
        return _prompt(job).split()
    words: list[str] = []
    for message in job.messages:
        words += message.content.split()
    return words


def _tokenized(job: Job) -> Iterator[Chunk]:
    """The words' checksums stand in for ids."""
    words = [word.encode() for word in _words(job)]
    yield Chunk(prompt_tokens=len(words))
    ids = tuple(map(zlib.crc32, words))
    spelled: tuple[TokenLogprob, ...] = ()
    if job.sampling.prompt_logprobs is not None:
        spelled = tuple(TokenLogprob(word, 0.0) for word in words)
    yield Chunk(ids=ids[len(job.delivered_ids) :], prompt_logprobs=spelled, finish="stop")


_TASKS: dict[str, tuple[Task, ...]] = {
    "auto": _GENERATES,
    "generate": _GENERATES,
    "embed": ("embed",),
    "score": ("score",),
}


def create(
    *,
    model: str,
    model_path: str | None,
    device: str,
    slots: int,
    token_delay: float,
    task: str = "auto",
) -> EchoEngine:
    """For the table in `worker.engines`; without a model or a device."""
    if task not in _TASKS:
        raise EngineUnavailable(f"no task {task!r}; there are: {', '.join(_TASKS)}")
    return EchoEngine(model=model, slots=slots, token_delay=token_delay, tasks=_TASKS[task])
