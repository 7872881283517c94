"""An answer as lines of JSON, for clients that read a line at a time: phones, sockets, shells.

    {"kind": "accepted", "request_id"}          first
    {"kind": "waiting", "reason", "position", "seconds"}  in the queue; null: not known
    {"kind": "text", "text"}                    more of the answer
    {"kind": "done", "text", "timestamp", "finish_reason", "request_id"}   the whole of it; last
    {"kind": "error", "code", "message", "request_id"}                     instead of `done`

An empty line every 15 s of silence keeps the connection alive.
"""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from api.requests.complete import RunningAnswer
from api.requests.errors import job_failure
from api.requests.parts import TextPart
from api.requests.reading import AnswerReader, Collected
from broker.wire import Failed, Finished, Waiting

CONTENT_TYPE = "application/x-ndjson; charset=utf-8"
_encode = msgspec.json.encode


async def lines(running: RunningAnswer, timestamp: Any) -> AsyncGenerator[bytes]:
    """The answer's frames, a line each."""
    yield _line("accepted", request_id=running.request_id)
    reader, whole = AnswerReader(running.job), Collected()
    async for frame in running.frames:
        parts = reader.take(frame) if frame is not None else []
        whole.add(parts)
        for part in parts:
            if isinstance(part, TextPart):
                yield _line("text", text=part.text)
        match frame:
            case None:
                yield b"\n"
            case Waiting():
                position, seconds = frame.position, frame.seconds
                yield _line("waiting", reason=frame.reason, position=position, seconds=seconds)
            case Finished():
                yield _line(
                    "done",
                    text=whole.text,
                    timestamp=timestamp,
                    finish_reason=frame.reason,
                    request_id=running.request_id,
                )
            case Failed():
                error = job_failure(frame, "text")
                yield _line(
                    "error", code=error.code, message=error.message, request_id=running.request_id
                )


def _line(kind: str, **fields: Any) -> bytes:
    return _encode({"kind": kind, **fields}) + b"\n"
