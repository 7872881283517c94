"""An answer as OpenAI's stream of chunks."""

from collections.abc import AsyncGenerator

from api import errors, sse, submission
from api.openai.shapes import Shape
from broker.stream import Stream
from broker.wire import AnyFrame, Delta, Failed, Finished, Waiting

DONE = b"data: [DONE]\n\n"


async def chunks(stream: Stream, shape: Shape, prompt_field: str, waiting: str | None) -> AsyncGenerator[bytes]:
    """The stream's frames as events. `waiting`: why nothing will come at once, if that is known already."""
    if waiting:
        yield sse.comment(f"waiting: {waiting}")
    if (first := shape.first()) is not None:
        yield sse.data(first)
    async for frame in sse.ticking(stream):
        if frame is None:
            yield sse.comment("keep-alive")
        elif (event := _event(frame, shape, prompt_field)) is not None:
            yield event


def _event(frame: AnyFrame, shape: Shape, prompt_field: str) -> bytes | None:
    match frame:
        case Delta():
            return sse.data(shape.piece(frame.text))
        case Waiting():
            return sse.comment(f"waiting: {frame.reason}")
        case Finished():
            ending = sse.data(shape.last(frame))
            return ending + (sse.data(shape.usage_chunk(frame)) if shape.with_usage else b"") + DONE
        case Failed():
            return sse.data(errors.body("/v1/", submission.failure(frame, prompt_field)))
    return None
