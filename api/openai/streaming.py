"""An answer as OpenAI's stream of chunks."""

from collections.abc import AsyncGenerator
from functools import partial

from api import errors
from api.http import sse
from api.openai.shapes import Shape
from api.requests import position
from api.requests.complete import RunningAnswer
from api.requests.errors import job_failure
from broker.wire import Delta, Failed, Finished, Waiting

DONE = b"data: [DONE]\n\n"


async def chunks(running: RunningAnswer, shape: Shape, prompt_field: str) -> AsyncGenerator[bytes]:
    """The answer's frames as events; those of several choices as they come."""
    if running.waiting:
        yield sse.comment(f"waiting: {running.waiting}")
    choices: dict[str, _Choice] = {}
    for index, request_id in enumerate(running.request_ids):
        choices[request_id] = _Choice(shape, index)
        first = shape.first(index)
        if first is not None:
            yield sse.data(first)
    ends: list[Finished] = []
    async for frame in running.frames:
        match frame:
            case Delta():
                yield choices[frame.request_id].event(frame)
            case None:
                yield sse.comment("keep-alive")
            case Waiting():
                yield sse.comment(f"waiting: {position.describe(frame)}")
            case Finished():
                ends.append(frame)
                last = sse.data(shape.last(choices[frame.request_id].index, frame))
                if len(ends) == len(choices):
                    last += _after_all(shape, ends)
                yield last
            case Failed():
                yield sse.data(errors.body("/v1/", job_failure(frame, prompt_field)))
                return


def _after_all(shape: Shape, ends: list[Finished]) -> bytes:
    """What follows the last chunk of all choices."""
    if shape.with_usage:
        return sse.data(shape.usage_chunk(ends)) + DONE
    return DONE


class _Choice:
    """One of the answers that are streamed together."""

    def __init__(self, shape: Shape, index: int) -> None:
        self.index = index
        self._shape = shape
        self._template = sse.Template(partial(shape.delta, index))
        self._characters = 0  # of the answer so far

    def event(self, delta: Delta) -> bytes:
        """The event of a part of its text."""
        offset = self._characters
        self._characters += len(delta.text)
        if not delta.logprobs:
            return self._template.event(delta.text)
        logprobs = self._shape.logprobs(delta.logprobs, offset)
        return sse.data(self._shape.delta(self.index, delta.text, logprobs))
