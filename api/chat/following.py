"""Reading and stopping an answer, whichever process writes it."""

import asyncio
import time
from collections.abc import AsyncGenerator

from api import sse
from api.chat import store
from api.chat.answers import Told, answers, ending
from api.chat.models import Message, Status

POLL = 0.5  # seconds between looks at an answer that another process writes


async def stop(message: Message) -> None:
    """Stops the answer, if it is still being written."""
    writing = answers.get(message.pk)
    if writing is not None:
        await writing.stop()
    elif message.status == Status.STREAMING:
        await store.stop_elsewhere(message)


async def follow(message: Message) -> AsyncGenerator[Told | None]:
    """The answer's events: the whole text so far, then what comes, then `done` or `failed`; None in silence."""
    writing = answers.get(message.pk)
    events = writing.follow() if writing is not None else _from_database(message)
    async for each in events:
        yield each


async def _from_database(message: Message) -> AsyncGenerator[Told | None]:
    """An answer that has ended, or that another process writes: the database tells, about once a second."""
    read, spoke = 0, time.monotonic()
    while True:
        if len(message.content) > read:
            yield Told("delta", {"text": message.content[read:]})
            read, spoke = len(message.content), time.monotonic()
        if message.status != Status.STREAMING:
            yield ending(message)
            return
        if time.monotonic() - spoke > sse.KEEPALIVE:
            yield None
            spoke = time.monotonic()
        await asyncio.sleep(POLL)
        await store.fail_orphans(message.conversation_id)
        try:
            await message.arefresh_from_db()
        except Message.DoesNotExist:
            yield Told("failed", {"message": "the conversation was deleted"})
            return
