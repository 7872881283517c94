"""An answer as OpenAI's stream of chunks."""

from collections.abc import AsyncGenerator, Iterable
from functools import partial
from typing import Any

from api import errors
from api.http import sse
from api.openai.shapes import Shape
from api.openai.usage_so_far import UsageSoFar
from api.requests import position
from api.requests.complete import RunningAnswer
from api.requests.errors import job_failure
from api.requests.journey import trail_comment
from api.requests.parts import Part, TextPart
from api.requests.reading import AnswerReader
from broker.wire import Delta, Failed, Finished, Start, TokenLogprob, Waiting

DONE = b"data: [DONE]\n\n"


async def chunks(running: RunningAnswer, shape: Shape, prompt_field: str) -> AsyncGenerator[bytes]:
    """The answer's frames as events; those of several choices as they come."""
    if running.waiting:
        yield sse.comment(f"waiting: {running.waiting}")
    choices: dict[str, _Choice] = {}
    readers = running.readers()
    counts = UsageSoFar(dict.fromkeys(readers, 0)) if shape.continuous_usage else None
    for index, (request_id, reader) in enumerate(readers.items()):
        choices[request_id] = _Choice(shape, index, reader, counts)
        first = shape.first(index)
        if first is not None:
            yield choices[request_id].chunk(first)
    ends: list[Finished] = []
    async for frame in running.frames:
        match frame:
            case Delta() | Start():
                events = choices[frame.request_id].events(frame)
                if events:
                    yield events
            case None:
                yield sse.comment("keep-alive")
            case Waiting():
                yield sse.comment(f"waiting: {position.describe(frame)}")
            case Finished():
                ends.append(frame)
                last = choices[frame.request_id].last(frame)
                if len(ends) == len(choices):
                    last += _after_all(shape, ends, choices.values())
                yield last
            case Failed():
                yield sse.data(errors.body("/v1/", job_failure(frame, prompt_field)))
                return


class _Choice:
    """One of the answers that are streamed together. `counts`: for chunks that tell the usage."""

    def __init__(
        self, shape: Shape, index: int, reader: AnswerReader, counts: UsageSoFar | None
    ) -> None:
        self.reader = reader
        self._counts = counts
        self._index = index
        self._shape = shape
        self._template = sse.Template(partial(shape.delta, index))
        self._characters = 0  # of the answer so far
        self._logprobs: list[TokenLogprob] = []  # of tokens whose part is undecided

    def events(self, frame: Delta | Start) -> bytes:
        """The events of its next frame, if there are any."""
        if isinstance(frame, Start):
            self.reader.take(frame)
            return trail_comment(frame)
        if self._counts is not None:
            self._counts.add(frame)
        if self.reader.plain_text(frame) is None:
            self._logprobs.extend(frame.logprobs)
            return self._events(self.reader.take(frame))
        offset = self._characters
        self._characters += len(frame.text)
        if not frame.logprobs and self._counts is None:
            return self._template.event(frame.text)
        logprobs = None
        if frame.logprobs:
            logprobs = self._shape.logprobs(frame.logprobs, offset)
        return self.chunk(self._shape.delta(self._index, frame.text, logprobs))

    def last(self, end: Finished) -> bytes:
        """The events of its end."""
        if self._counts is not None:
            self._counts.add(end)
        events = self._events(self.reader.take(end))
        reason = self.reader.reason(end)
        return events + self.chunk(self._shape.last(self._index, end, reason))

    def chunk(self, content: dict[str, Any]) -> bytes:
        """A chunk as an event, with the usage so far if that is wanted."""
        if self._counts is not None:
            content["usage"] = self._counts.told()
        return sse.data(content)

    def _events(self, parts: list[Part]) -> bytes:
        """An event for each part; the logprobs come with the first."""
        events = b""
        for part in parts:
            logprobs, self._logprobs = self._shape.logprobs(self._logprobs, 0), []
            if isinstance(part, TextPart) and logprobs is None and self._counts is None:
                events += self._template.event(part.text)
            else:
                events += self.chunk(self._shape.part(self._index, part, logprobs))
        return events


def _after_all(shape: Shape, ends: list[Finished], choices: Iterable[_Choice]) -> bytes:
    """What follows the last chunk of all choices."""
    if not shape.with_usage:
        return DONE
    reasoning_tokens = sum(choice.reader.reasoning_tokens for choice in choices)
    return sse.data(shape.usage_chunk(ends, reasoning_tokens)) + DONE
