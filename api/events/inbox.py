"""What one reader has not read yet, within bounds."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Literal

from broker.conversation_events import ConversationChange
from broker.wire import Delta, Start, Waiting

CHANGES = 200  # a reader that is further behind loads everything again
PARTS = 32  # of all answers together; then the answers wait for the reader

Part = tuple[int, Delta | Start | Waiting | None]  # of an answer: the message's key; None: it ended
CHANGED: Literal["changed"] = "changed"
Item = Part | Literal["changed"]


class Inbox(AsyncIterator[Item]):
    """Changes and parts of answers for one reader.

    Iterating gives the parts, and CHANGED where `take` has changes. Too many changes become one:
    that something was lost. Writers of parts wait, writers of changes never do.
    """

    def __init__(self) -> None:
        self._changes: deque[ConversationChange] = deque()
        self._lost = False
        self._parts: asyncio.Queue[Item] = asyncio.Queue(PARTS)

    async def __anext__(self) -> Item:
        return await self._parts.get()

    async def put_part(self, part: Part) -> None:
        """Adds a part of an answer; waits while the reader has too many."""
        await self._parts.put(part)

    def put(self, change: ConversationChange) -> None:
        """Adds a change, or notes the loss if the reader is too far behind."""
        if len(self._changes) >= CHANGES:
            self.lose()
        elif not self._lost:
            self._changes.append(change)
            self._wake()

    def lose(self) -> None:
        """The reader must load everything again; the changes that wait are part of that."""
        self._changes.clear()
        self._lost = True
        self._wake()

    def take(self) -> tuple[list[ConversationChange], bool]:
        """The changes that have arrived, and whether something was lost."""
        changes, lost = list(self._changes), self._lost
        self._changes.clear()
        self._lost = False
        return changes, lost

    def _wake(self) -> None:
        with contextlib.suppress(asyncio.QueueFull):  # then the reader has something to wake it
            self._parts.put_nowait(CHANGED)
