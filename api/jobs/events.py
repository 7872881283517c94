"""A stored job as server-sent events that can be resumed.

`job` says how it stands, `delta` brings text as the model writes it, `end` is the job with its
result. An event's id is the position in the text, so `Last-Event-ID` says what a reader has.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from api.answers import following
from api.http import sse
from api.idempotency.models import KeptRequest
from api.jobs import store
from api.jobs.models import OPEN, StoredJob
from api.jobs.schemas import stored_job
from broker.wire import Delta

POLL = 0.5  # seconds between looks at the job
END = "end"


def position_of(last_event_id: str | None) -> int | None:
    """Where a reader goes on; None if it has everything."""
    if last_event_id == END:
        return None
    if last_event_id and last_event_id.isascii() and last_event_id.isdecimal():
        return int(last_event_id[:12])
    return 0


async def events(job: StoredJob, begin: int) -> AsyncGenerator[bytes]:
    """The job's events from character `begin` of its text on, to its end."""
    position = begin
    shown: Any = None
    sent_at = time.monotonic()
    while True:
        now = await store.current(job)
        if now is None:
            return
        if now.status not in OPEN:
            yield _event("end", END, stored_job(now).model_dump(mode="json"))
            return
        state = stored_job(now, with_result=False).model_dump(mode="json")
        if state != shown:
            shown, sent_at = state, time.monotonic()
            yield _event("job", str(position), state)
        answer = await store.answer(job)
        if answer is not None and now.status == "running":
            async with aclosing(_text(answer, position)) as parts:
                async for part, reached in parts:
                    position = reached
                    yield part
            sent_at = time.monotonic()
        elif time.monotonic() - sent_at > sse.KEEPALIVE:
            sent_at = time.monotonic()
            yield sse.comment("keep-alive")
        await asyncio.sleep(POLL)


async def _text(answer: KeptRequest, position: int) -> AsyncGenerator[tuple[bytes, int]]:
    """The text from that position on, until the answer ends."""
    async with aclosing(following.follow(answer, position)) as frames:
        async for frame in frames:
            if isinstance(frame, Delta):
                position += len(frame.text)
                yield _event("delta", str(position), {"text": frame.text}), position
            elif frame is None:
                yield sse.comment("keep-alive"), position


def _event(name: str, number: str, payload: Any) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        number.encode(),
        name.encode(),
        msgspec.json.encode(payload),
    )
