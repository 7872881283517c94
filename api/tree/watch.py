"""The tree, kept fresh while somebody watches: one reader of the broker for any number of watchers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

import structlog

from api.settings import ENV
from broker.client import Client, Unavailable
from broker.management import Edges, ManagementError, edges
from broker.tree import Tree, settled, tree
from topology import names

log = structlog.get_logger("canopy.api")

BINDINGS_EVERY = 1.0  # seconds between reads of the management API
AT_MOST_EVERY = 0.2  # seconds between two trees
REPEAT_EVERY = 5.0  # seconds after which an unchanged tree is sent again

_NOTHING = Edges(roots={}, parents={}, present=frozenset(), registered=frozenset())


class Unreadable(Exception):
    """The broker does not tell its bindings now; the text says why."""


async def read_edges() -> Edges:
    """The bindings. Raises Unreadable."""
    if not ENV.management_url:
        raise Unreadable("CANOPY_MANAGEMENT_URL is not set")
    try:
        return await edges(ENV.management_url)
    except ManagementError as error:
        raise Unreadable(str(error)) from error


async def compose(found: Edges, client: Client) -> Tree:
    """The tree of these bindings, with the nodes' states and the queues' depths of this moment."""
    queues = [names.node(name) for name in found.registered]
    try:
        depths = await client.depths(queues)
    except Unavailable:
        depths = {}
    return tree(found, client.nodes(), depths, time.time(), client.clock_differences())


class Watch:
    """Reads the tree as long as it has watchers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._watchers = 0
        self._reader: asyncio.Task[None] | None = None
        self._latest: Tree | None = None
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncGenerator[Tree]:
        """The tree at once, on every change, and every few seconds."""
        self._enter()
        try:
            while True:
                changed = self._changed
                if self._latest is not None:
                    yield self._latest
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REPEAT_EVERY):
                        await changed.wait()
        finally:
            self._leave()

    def _enter(self) -> None:
        self._watchers += 1
        if self._reader is None:
            self._reader = asyncio.create_task(self._read(), name="tree")

    def _leave(self) -> None:
        self._watchers -= 1
        if self._watchers == 0 and self._reader is not None:
            self._reader.cancel()
            self._reader, self._latest, self._changed = None, None, asyncio.Event()

    async def _read(self) -> None:
        found, read_at = _NOTHING, 0.0
        while True:
            began = time.monotonic()
            if began - read_at >= BINDINGS_EVERY:
                found, read_at = await self._bindings(found), time.monotonic()
            self._publish(await compose(found, self._client))
            await self._until_something_happens()
            await asyncio.sleep(max(0.0, began + AT_MOST_EVERY - time.monotonic()))

    async def _bindings(self, former: Edges) -> Edges:
        try:
            return await read_edges()
        except Unreadable as error:
            log.warning("tree not readable", reason=str(error))
            return former

    async def _until_something_happens(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BINDINGS_EVERY):
                await self._client.changed()

    def _publish(self, fresh: Tree) -> None:
        """Wakes the watchers if something else than the clock has changed."""
        former, self._latest = self._latest, fresh
        if former is None or settled(former) != settled(fresh):
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
