"""Beginning, reading and stopping an answer, whichever process writes it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from api.answers import store
from api.answers.record import Status, StoredAnswer
from api.context import app
from api.http import sse
from broker.wire import AnyFrame, Delta, Failed, Finished, Job

POLL = 0.5  # seconds between looks at an answer that another process writes


async def begin(record: StoredAnswer, job: Job, undo: Callable[[], Awaitable[None]]) -> None:
    """Submits the job of an answer that was just stored, and begins to write it.

    `undo` removes what was stored if the job is refused: raises ApiError then.
    """
    waiting = app().catalog.nobody_serves(job.model)
    try:
        stream = await app().submitter.submit(job)
    except BaseException:
        await undo()
        raise
    app().writings.begin(record, stream, waiting)


async def stop(record: StoredAnswer) -> None:
    """Stops the answer, if it is still being written."""
    writing = app().writings.get(record.handle)
    if writing is not None:
        await writing.stop()
    elif record.status == Status.STREAMING:
        await store.stop(record)


async def follow(record: StoredAnswer) -> AsyncGenerator[AnyFrame | None]:
    """The whole text so far, then what comes, then Finished or Failed; None in silence. Readers change nothing.

    The answer may change hands on the way: a new owner makes the same text again from what was stored last, so a
    position in the text stays true.
    """
    read = 0
    while True:
        writing = app().writings.get(record.handle)
        async with aclosing(
            writing.follow(read) if writing else _from_database(record, read)
        ) as frames:
            async for frame in frames:
                if isinstance(frame, Delta):
                    read += len(frame.text)
                yield frame
                if isinstance(frame, Finished | Failed):
                    return


async def _from_database(record: StoredAnswer, read: int) -> AsyncGenerator[AnyFrame | None]:
    """An answer that has ended, or that another process writes: the database tells, about once a second. Ends without
    Finished or Failed when this process begins to write it.
    """
    spoke = time.monotonic()
    while app().writings.get(record.handle) is None:
        found = await store.current(record)
        if found is None:
            yield Failed(
                request_id=record.request_id,
                code="internal",
                message="it was deleted",
                retryable=True,
            )
            return
        if text := found.content[read:]:
            read, spoke = read + len(text), time.monotonic()
            yield Delta(request_id=record.request_id, text=text)
        if found.status != Status.STREAMING:
            yield found.ending()
            return
        if store.is_orphan(found.owner, found.touched):
            app().takeover.wake()
        if time.monotonic() - spoke > sse.KEEPALIVE:
            spoke = time.monotonic()
            yield None
        await asyncio.sleep(POLL)
