"""An answer as the chat page's server-sent events: `waiting`, `delta`, then `done` or `failed`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from api.chat import store
from api.chat.models import Message
from api.http import sse
from broker.wire import AnyFrame, Delta, Failed, Finished, Waiting


async def of(answer: Message, frames: AsyncGenerator[AnyFrame | None]) -> AsyncGenerator[bytes]:
    """The answer's frames as events; closes them at its end."""
    async with aclosing(frames):
        async for frame in frames:
            if isinstance(frame, Finished):
                yield await _done(answer, frame)
                continue
            event = _event(frame)
            if event is not None:
                yield event


async def _done(answer: Message, end: Finished) -> bytes:
    fields = {
        "finish_reason": end.reason,
        "completion_tokens": end.completion_tokens,
        "seen_from": await store.seen_from(answer, end.omitted_messages),
    }
    return sse.event("done", fields)


def _event(frame: AnyFrame | None) -> bytes | None:
    match frame:
        case None:
            return sse.comment("ping")
        case Delta():
            return sse.event("delta", {"text": frame.text})
        case Waiting():
            fields = {
                "reason": frame.reason,
                "position": frame.position,
                "seconds": frame.seconds,
                "job_class": "interactive",
            }
            return sse.event("waiting", fields)
        case Failed():
            return sse.event("failed", {"message": frame.message})
    return None
