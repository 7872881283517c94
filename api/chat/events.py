"""An answer as the chat page's server-sent events.

`waiting`, `start`, `delta`, then `done` or `failed` with the whole message as it is stored.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from api.answers import store as answers
from api.answers.writer import hops
from api.chat import schemas, store
from api.chat.models import Message
from api.http import sse
from broker.wire import AnyFrame, Delta, Failed, Finished, Start, Waiting


async def of(answer: Message, frames: AsyncGenerator[AnyFrame | None]) -> AsyncGenerator[bytes]:
    """The answer's frames as events; closes them at its end."""
    async with aclosing(frames):
        async for frame in frames:
            match frame:
                case Finished():
                    yield sse.event("done", await _done(answer, frame))
                case Failed():
                    fields = {"message": frame.message, "answer": await _stored(answer)}
                    yield sse.event("failed", fields)
                case _:
                    event = _event(frame)
                    if event is not None:
                        yield event


async def _done(answer: Message, end: Finished) -> dict[str, Any]:
    return {
        "finish_reason": end.reason,
        "completion_tokens": end.completion_tokens,
        "seen_from": await store.seen_from(answer, end.omitted_messages),
        "answer": await _stored(answer),
    }


async def _stored(answer: Message) -> dict[str, Any] | None:
    """The message as the API has it; None if it was deleted."""
    stored = await answers.current(answer)
    if stored is None:
        return None
    return schemas.Message.of(stored).model_dump(mode="json")


def _event(frame: AnyFrame | None) -> bytes | None:
    match frame:
        case None:
            return sse.comment("ping")
        case Delta():
            return sse.event("delta", {"text": frame.text})
        case Start():
            return sse.event("start", start_fields(frame))
        case Waiting():
            return sse.event("waiting", waiting_fields(frame) | {"job_class": "interactive"})
    return None


def start_fields(frame: Start) -> dict[str, Any]:
    """Which node answers, and the answer's way to it."""
    return {"node": frame.node, "trail": hops(frame)}


def waiting_fields(frame: Waiting) -> dict[str, Any]:
    """Why an answer waits, and how long it will."""
    return {
        "reason": frame.reason,
        "code": frame.code,
        "slots": frame.slots,
        "position": frame.position,
        "seconds": frame.seconds,
    }
