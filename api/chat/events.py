"""An answer as the chat page's server-sent events: `waiting`, `delta`, then `done` or `failed`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from api import sse
from broker.wire import AnyFrame, Delta, Failed, Finished, Waiting


async def of(frames: AsyncGenerator[AnyFrame | None]) -> AsyncGenerator[bytes]:
    """The frames as events; closes them at its end."""
    async with aclosing(frames):
        async for frame in frames:
            if event := _event(frame):
                yield event


def _event(frame: AnyFrame | None) -> bytes | None:
    match frame:
        case None:
            return sse.comment("ping")
        case Delta():
            return sse.event("delta", {"text": frame.text})
        case Waiting():
            place = {"position": frame.position, "seconds": frame.seconds}
            return sse.event("waiting", {"reason": frame.reason, **place, "job_class": "interactive"})
        case Finished():
            return sse.event("done", {"finish_reason": frame.reason, "completion_tokens": frame.completion_tokens})
        case Failed():
            return sse.event("failed", {"message": frame.message})
    return None
