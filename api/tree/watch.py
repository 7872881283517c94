"""The tree, kept fresh while somebody watches: one reader for all watchers of this process.

What it reads comes to this process anyway (the nodes' states, the tree's edges), so watching asks
nobody anything, except the broker for the depths of the few queues in which jobs may be left.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from api.errors import ServiceUnavailable
from api.http import sse
from api.tree.depths import Depths
from api.tree.patches import difference, is_empty
from api.tree.rates import NodeRates
from api.tree.trend import SAMPLE_SECONDS, Trend
from broker.broker_reports import REPORT_SECONDS, SILENT_SECONDS
from broker.client import Client
from broker.management import Edges
from broker.tree import Tree, tree
from topology import names

AT_MOST_EVERY = 0.2  # seconds between two trees
LOOK_EVERY = 1.0  # seconds after which a tree is made although no event came
REPEAT_EVERY = 5.0  # seconds after which a reader hears something although nothing changed
KEPT_PATCHES = 50  # a reader that is further behind gets the whole tree
FIRST_SECONDS = 2 * REPORT_SECONDS  # a new process waits so long for the recorder's first report
LATE_SECONDS = 3 * SILENT_SECONDS  # after which the recorder's report says nothing of now


class TreeUnreadable(ServiceUnavailable):
    """The broker's bindings are not known; the text says why."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"the tree cannot be read now: {reason}")


async def require_edges(client: Client) -> Edges:
    """The tree's edges as the broker has them now. Raises TreeUnreadable."""
    reports = client.reports
    overview = await reports.first(FIRST_SECONDS)
    if overview is None or reports.age > LATE_SECONDS:
        raise TreeUnreadable("no API process has read the broker's management API lately")
    if overview.problem:
        raise TreeUnreadable(overview.problem)
    return client.edges.now()


@dataclass(frozen=True, slots=True)
class _Event:
    """A change as server-sent bytes. Events are numbered from 1."""

    number: int
    body: bytes


class TreeWatch:
    """Makes trees as long as it has watchers; counts rates and samples all the time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._depths = Depths(client)
        self._rates = NodeRates()
        self._trend = Trend()
        self._watchers = 0
        self._reader: asyncio.Task[None] | None = None
        self._latest: Tree | None = None
        self._events: deque[_Event] = deque(maxlen=KEPT_PATCHES)
        self._number = 0  # of the latest event
        self._changed = asyncio.Event()

    async def now(self) -> Tree:
        """The tree as it is now. Raises TreeUnreadable."""
        await require_edges(self._client)
        return await self._compose()

    async def sample_repeatedly(self) -> None:
        """Counts rates every second and keeps a sample every SAMPLE_SECONDS. Never ends."""
        sampled_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now = time.monotonic()
            self._rates.observe(self._client.nodes(), now)
            if now - sampled_at >= SAMPLE_SECONDS:
                sampled_at = now
                self._trend.add(self._latest or await self._compose())

    # ---- watchers

    async def follow(self) -> AsyncGenerator[Tree]:
        """The tree at once, on every change, and every REPEAT_EVERY seconds."""
        self._enter()
        try:
            while True:
                changed = self._changed
                if self._latest is not None:
                    yield self._latest
                await self._wait(changed)
        finally:
            self._leave()

    async def follow_changes(self) -> AsyncGenerator[bytes]:
        """Server-sent events: `trend` and `tree` at first, then a `patch` a change.

        A patch comes every REPEAT_EVERY seconds at least, so that a reader knows that it is live.
        """
        self._enter()
        try:
            yield sse.event("trend", self._trend.samples)
            number = -1
            while True:
                changed = self._changed
                if self._latest is not None:
                    for body in self._since(number, self._latest):
                        yield body
                    number = self._number
                await self._wait(changed)
                if number == self._number and self._latest is not None:
                    yield sse.event("patch", _pulse(self._latest))
        finally:
            self._leave()

    def _since(self, number: int, latest: Tree) -> list[bytes]:
        """What a reader of event `number` needs: the events since, or the whole tree."""
        missing = [event.body for event in self._events if event.number > number]
        if number < 0 or len(missing) < self._number - number:
            return [sse.event("tree", latest)]
        return missing

    async def _wait(self, changed: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPEAT_EVERY):
                await changed.wait()

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
            self._events.clear()
            self._changed = asyncio.Event()

    # ---- making trees

    async def _read(self) -> None:
        while True:
            began = time.monotonic()
            changes = asyncio.ensure_future(self._client.changed())
            try:
                self._publish(await self._compose())
                await asyncio.wait([changes], timeout=LOOK_EVERY)
            finally:
                changes.cancel()
            await asyncio.sleep(max(0.0, began + AT_MOST_EVERY - time.monotonic()))

    async def _compose(self) -> Tree:
        """The tree of this moment, with the rates of its nodes."""
        edges, states = self._client.edges.now(), self._client.nodes()
        depths = await self._depths.of(edges, states)
        differences, lost = self._client.clock_differences(), self._client.lost_nodes()
        current = tree(edges, states, depths, time.time(), differences, lost)
        self._add_rates(current)
        current["summary"]["total"]["dead"] = depths.get(names.DEAD_QUEUE, 0)
        return current

    def _add_rates(self, current: Tree) -> None:
        for node in current["nodes"]:
            rates = self._rates.rates(node["name"])
            node["tokens_per_second"] = rates.tokens
            node["jobs_per_second"] = rates.jobs
            node["errors"] = self._rates.errors(node["name"])
        summary = current["summary"]
        for part in summary["trees"]:
            members = [node for node in current["nodes"] if node["root"] == part["root"]]
            part["tokens_per_second"] = _sum(members, "tokens_per_second")
            part["errors"] = sum(node["errors"] for node in members)
        total = summary["total"]
        total["tokens_per_second"] = _sum(current["nodes"], "tokens_per_second")
        total["errors"] = self._rates.all_errors()

    def _publish(self, latest: Tree) -> None:
        """Wakes the watchers if something other than the clock has changed."""
        former, self._latest = self._latest, latest
        if former is None:
            self._wake()
            return
        patch = difference(former, latest)
        if not is_empty(patch):
            self._number += 1
            self._events.append(_Event(self._number, sse.event("patch", patch)))
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _sum(nodes: list[dict[str, float]], figure: str) -> float:
    return round(sum(node[figure] for node in nodes), 1)


def _pulse(latest: Tree) -> dict[str, object]:
    """A patch without changes."""
    return {"at": latest["at"], "summary": latest["summary"]}
