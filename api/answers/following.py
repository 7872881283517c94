"""Beginning, reading and stopping an answer, whichever process writes it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from api.answers import store
from api.answers.record import Status, StoredAnswer
from api.context import app
from api.http import sse
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, Start

POLL = 0.5  # seconds between looks at an answer that another process writes


async def begin(record: StoredAnswer, job: Job, undo: Callable[[], Awaitable[None]]) -> None:
    """Submits the job of an answer that was just stored, and begins to write it.

    `undo` removes what was stored if the job is refused; then ApiError is raised.
    """
    waiting = app().catalog.nobody_serves(job.model)
    try:
        stream = await app().submitter.submit(job)
    except BaseException:
        await undo()
        raise
    app().writers.begin(record, stream, waiting)


async def stop(record: StoredAnswer) -> None:
    """Stops the answer, if it is still being written."""
    writer = app().writers.get(record.handle)
    if writer is not None:
        await writer.stop()
    elif record.status == Status.STREAMING:
        await store.stop(record)


async def follow(record: StoredAnswer, position: int = 0) -> AsyncGenerator[AnyFrame | None]:
    """The text from that character on, then what comes, then Finished or Failed; None in silence.

    The answer may change owners on the way: a new owner generates the same text again from what was
    stored last, so a position in the text stays valid.
    """
    while True:
        writer = app().writers.get(record.handle)
        source = writer.follow(position) if writer else _from_database(record, position)
        async with aclosing(source) as frames:
            async for frame in frames:
                if isinstance(frame, Delta):
                    position += len(frame.text)
                yield frame
                if isinstance(frame, Finished | Failed):
                    return


def _start(stored: StoredAnswer) -> Start:
    """The beginning of the answer's newest run, as far as it is stored."""
    trail = stored.trail or []
    return Start(
        request_id=stored.request_id,
        node=stored.node,
        trail=tuple(hop["node"] for hop in trail),
        waits=tuple(hop["wait_ms"] / 1000 for hop in trail),
        tool_format=stored.tool_format,
        reasoning_format=stored.reasoning_format,
    )


async def _from_database(record: StoredAnswer, position: int) -> AsyncGenerator[AnyFrame | None]:
    """An answer that has ended, or that another process writes.

    Ends without Finished or Failed when this process begins to write it.
    """
    last_frame_at = time.monotonic()
    node = ""
    while app().writers.get(record.handle) is None:
        stored = await store.current(record)
        if stored is None:
            yield Failed(
                request_id=record.request_id,
                code="internal",
                message="it was deleted",
                retryable=True,
            )
            return
        if stored.node != node:
            node = stored.node
            yield _start(stored)
        text = stored.content[position:]
        if text:
            position += len(text)
            last_frame_at = time.monotonic()
            yield Delta(request_id=record.request_id, text=text)
        if stored.status != Status.STREAMING:
            yield stored.ending()
            return
        if store.is_orphan(stored.owner, stored.touched):
            app().takeover.wake()
        if time.monotonic() - last_frame_at > sse.KEEPALIVE:
            last_frame_at = time.monotonic()
            yield None
        await asyncio.sleep(POLL)
