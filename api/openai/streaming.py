"""An answer as OpenAI's stream of chunks."""

from collections.abc import AsyncGenerator

from api import errors, line, sse, submission
from api.completion import Begun
from api.openai.shapes import Shape
from broker.wire import AnyFrame, Delta, Failed, Finished, Waiting

DONE = b"data: [DONE]\n\n"


async def chunks(begun: Begun, shape: Shape, prompt_field: str) -> AsyncGenerator[bytes]:
    """The answer's frames as events."""
    if begun.waiting:
        yield sse.comment(f"waiting: {begun.waiting}")
    if (first := shape.first()) is not None:
        yield sse.data(first)
    piece = sse.Template(shape.piece)
    async for frame in begun.frames:
        if isinstance(frame, Delta):
            yield piece.event(frame.text)
        elif frame is None:
            yield sse.comment("keep-alive")
        elif (event := _event(frame, shape, prompt_field)) is not None:
            yield event


def _event(frame: AnyFrame, shape: Shape, prompt_field: str) -> bytes | None:
    match frame:
        case Waiting():
            return sse.comment(f"waiting: {line.in_words(frame)}")
        case Finished():
            ending = sse.data(shape.last(frame))
            return ending + (sse.data(shape.usage_chunk(frame)) if shape.with_usage else b"") + DONE
        case Failed():
            return sse.data(errors.body("/v1/", submission.failure(frame, prompt_field)))
    return None
