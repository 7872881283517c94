"""An answer as OpenAI's stream of chunks."""

from collections.abc import AsyncGenerator
from functools import partial

from api import errors
from api.http import sse
from api.openai.shapes import Shape
from api.requests import position as line
from api.requests.complete import Begun
from api.requests.errors import job_failure
from broker.wire import Delta, Failed, Finished, Waiting

DONE = b"data: [DONE]\n\n"


async def chunks(begun: Begun, shape: Shape, prompt_field: str) -> AsyncGenerator[bytes]:
    """The answer's frames as events; those of several choices as they come."""
    if begun.waiting:
        yield sse.comment(f"waiting: {begun.waiting}")
    choices = {
        request_id: _Choice(shape, index) for index, request_id in enumerate(begun.request_ids)
    }
    for choice in choices.values():
        if (first := shape.first(choice.index)) is not None:
            yield sse.data(first)
    ends: list[Finished] = []
    async for frame in begun.frames:
        match frame:
            case Delta():
                yield choices[frame.request_id].event(frame)
            case None:
                yield sse.comment("keep-alive")
            case Waiting():
                yield sse.comment(f"waiting: {line.in_words(frame)}")
            case Finished():
                ends.append(frame)
                ending = sse.data(shape.last(choices[frame.request_id].index, frame))
                yield ending + (_after_all(shape, ends) if len(ends) == len(choices) else b"")
            case Failed():
                yield sse.data(errors.body("/v1/", job_failure(frame, prompt_field)))
                return


def _after_all(shape: Shape, ends: list[Finished]) -> bytes:
    return (sse.data(shape.usage_chunk(ends)) if shape.with_usage else b"") + DONE


class _Choice:
    """One answer of those that are streamed together."""

    def __init__(self, shape: Shape, index: int) -> None:
        self.index = index
        self._shape = shape
        self._piece = sse.Template(partial(shape.piece, index))
        self._told = 0  # characters

    def event(self, delta: Delta) -> bytes:
        """The event of a piece of its text."""
        before, self._told = self._told, self._told + len(delta.text)
        if not delta.logprobs:
            return self._piece.event(delta.text)
        return sse.data(
            self._shape.piece(self.index, delta.text, self._shape.logprobs(delta.logprobs, before))
        )
