"""The tree, kept fresh while somebody watches: one reader of the broker for all watchers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

import structlog

from api.errors import ServiceUnavailable
from api.settings import ENV
from broker.client import Client
from broker.errors import ManagementError, Unavailable
from broker.management import Edges, edges
from broker.tree import Tree, settled, tree
from topology import names

log = structlog.get_logger("canopy.api")

BINDINGS_EVERY = 1.0  # seconds between reads of the management API
AT_MOST_EVERY = 0.2  # seconds between two trees
REPEAT_EVERY = 5.0  # seconds after which an unchanged tree is sent again

_NO_EDGES = Edges(roots={}, parents={}, present=frozenset(), registered=frozenset())


class TreeUnreadable(ServiceUnavailable):
    """The broker's management API does not answer; the text says why."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"the tree cannot be read now: {reason}")


async def read_edges() -> Edges:
    """The tree's edges, from the broker's bindings. Raises TreeUnreadable."""
    if not ENV.management_url:
        raise TreeUnreadable("CANOPY_MANAGEMENT_URL is not set")
    try:
        return await edges(ENV.management_url)
    except ManagementError as error:
        raise TreeUnreadable(error) from error


async def compose(edges: Edges, client: Client) -> Tree:
    """The tree of these edges, with the nodes' states and the queues' depths of this moment."""
    queues = [names.node(name) for name in edges.registered]
    try:
        depths = await client.depths(queues)
    except Unavailable:
        depths = {}
    return tree(edges, client.nodes(), depths, time.time(), client.clock_differences())


class TreeWatch:
    """Reads the tree as long as it has watchers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._watchers = 0
        self._reader: asyncio.Task[None] | None = None
        self._latest: Tree | None = None
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncGenerator[Tree]:
        """The tree at once, on every change, and every REPEAT_EVERY seconds."""
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
            self._reader = None
            self._latest = None
            self._changed = asyncio.Event()

    async def _read(self) -> None:
        edges, read_at = _NO_EDGES, 0.0
        while True:
            began = time.monotonic()
            if began - read_at >= BINDINGS_EVERY:
                edges, read_at = await self._read_edges(edges), time.monotonic()
            self._publish(await compose(edges, self._client))
            await self._until_a_node_changes()
            await asyncio.sleep(max(0.0, began + AT_MOST_EVERY - time.monotonic()))

    async def _read_edges(self, former: Edges) -> Edges:
        try:
            return await read_edges()
        except TreeUnreadable as error:
            log.warning("tree not readable", reason=str(error))
            return former

    async def _until_a_node_changes(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BINDINGS_EVERY):
                await self._client.changed()

    def _publish(self, latest: Tree) -> None:
        """Wakes the watchers if something other than the clock has changed."""
        former, self._latest = self._latest, latest
        if former is None or settled(former) != settled(latest):
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
