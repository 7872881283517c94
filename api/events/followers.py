"""The running answers of one conversation, read together."""

import asyncio
from contextlib import aclosing
from types import TracebackType
from typing import Self

import structlog
from django.db import DatabaseError

from api.answers import following
from api.chat.models import Message
from api.events.inbox import Inbox
from broker.wire import Delta, Start, Waiting

MAX_FOLLOWED = 8  # answers; more never run in one conversation

log = structlog.get_logger("canopy.api")


class Followers:
    """Reads any number of answers into one inbox. Ends all of them when it is left."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def follow(self, answer: Message) -> None:
        """Reads this answer from its beginning, unless it is read already."""
        if answer.pk in self._tasks or len(self._tasks) >= MAX_FOLLOWED:
            return
        name = f"reader of message {answer.pk}"
        self._tasks[answer.pk] = asyncio.create_task(self._read(answer), name=name)

    async def stop(self, message: int) -> None:
        """Reads that answer no more."""
        task = self._tasks.pop(message, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _read(self, answer: Message) -> None:
        try:
            async with aclosing(following.follow(answer)) as frames:
                async for frame in frames:
                    if isinstance(frame, Delta | Start | Waiting):
                        await self._inbox.put_part((answer.pk, frame))
        except DatabaseError as error:  # fate: the reader loads the message, and fails or goes on
            log.warning(
                "an answer cannot be read now",
                message=answer.pk,
                request_id=answer.request_id,
                reason=str(error),
            )
        await self._inbox.put_part((answer.pk, None))
