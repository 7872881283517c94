"""How many letters there are, and the latest replays: read once a second for all watchers."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from api.operate.dead import store
from api.operate.dead.models import DeadReplay
from broker.client import Client
from broker.errors import Unavailable
from topology import names

READ_EVERY = 1.0  # seconds
REPEAT_EVERY = 10.0  # seconds after which an unchanged overview is sent again
SHOWN = 50  # replays


@dataclass(frozen=True, slots=True)
class Overview:
    """`waiting`: letters in the queue; None while the broker is away."""

    waiting: int | None
    replays: tuple[DeadReplay, ...]
    changes: int = 0  # by operators in this process

    def fingerprint(self) -> object:
        """Differs where a watcher would see a difference."""
        return (
            self.waiting,
            self.changes,
            [(row.pk, row.state, row.tokens, row.node) for row in self.replays],
        )


class DeadWatch:
    """Reads only when somebody asks. `touch` says that letters were taken or dropped here."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._latest = Overview(None, ())
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._changes = 0

    def touch(self) -> None:
        """The next overview is a new one, even if there are as many letters as before."""
        self._changes += 1

    async def read(self) -> Overview:
        """The overview, at most READ_EVERY old."""
        async with self._reading:
            if time.monotonic() - self._read_at >= READ_EVERY:
                rows = await store.latest(SHOWN)
                self._latest = Overview(await self._depth(), tuple(rows), self._changes)
                self._read_at = time.monotonic()
        return self._latest

    async def follow(self) -> AsyncGenerator[Overview]:
        """At once, on every change, and every REPEAT_EVERY seconds."""
        shown: object = None
        sent_at = 0.0
        while True:
            overview = await self.read()
            now = time.monotonic()
            if overview.fingerprint() != shown or now - sent_at >= REPEAT_EVERY:
                shown, sent_at = overview.fingerprint(), now
                yield overview
            await asyncio.sleep(READ_EVERY)

    async def _depth(self) -> int | None:
        try:
            depths = await self._client.depths([names.DEAD_QUEUE])
        except Unavailable:
            return None
        return depths.get(names.DEAD_QUEUE)
