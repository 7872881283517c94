"""How many jobs are ready in the queues of nodes."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from broker.client import Client
from broker.errors import Unavailable
from broker.management import Edges
from broker.node_state import NodeState
from broker.operator_messages import BrokerOverview
from topology import names
from topology.dispatch import FORWARD_PREFETCH, ROOT_PREFETCH

DEPTHS_EVERY = 1.0  # seconds between two looks
MAX_DEPTHS = 50  # queues whose depth is asked for at a time


class Depths:
    """Jobs ready in the queues of nodes.

    A node that serves takes its jobs at once, so nearly all queues are empty. Only where jobs may
    be left is the broker asked; if these are many, the recorder's last report must do for some.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._asked: dict[str, int] = {}
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def of(self, edges: Edges, states: Mapping[str, NodeState]) -> dict[str, int]:
        """By queue."""
        async with self._asking:
            if time.monotonic() - self._asked_at >= DEPTHS_EVERY:
                self._asked = await self._ask(edges, states)
                self._asked_at = time.monotonic()
            return self._asked

    async def _ask(self, edges: Edges, states: Mapping[str, NodeState]) -> dict[str, int]:
        queues = [names.DEAD_QUEUE]
        for name in sorted(edges.registered):
            if keeps_jobs(name, edges, states):
                queues.append(names.node(name))
        depths = _reported(self._client.reports.latest, queues[MAX_DEPTHS:])
        try:
            async with asyncio.timeout(DEPTHS_EVERY):
                return depths | await self._client.depths(queues[:MAX_DEPTHS])
        except (TimeoutError, Unavailable):
            return _reported(self._client.reports.latest, queues)


def keeps_jobs(name: str, edges: Edges, states: Mapping[str, NodeState]) -> bool:
    """True if jobs may be left in the node's queue: it has taken all it may, or takes none."""
    state = states.get(name)
    if state is None or name not in edges.present:
        return True
    prefetch = FORWARD_PREFETCH
    if name in edges.roots:
        prefetch = ROOT_PREFETCH
    return state.held >= prefetch or state.status not in ("idle", "busy")


def _reported(overview: BrokerOverview | None, queues: Sequence[str]) -> dict[str, int]:
    if overview is None or not queues:
        return {}
    names = set(queues)
    return {queue.name: queue.ready for queue in overview.queues if queue.name in names}
