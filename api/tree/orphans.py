"""Has the queues of dead nodes emptied where no parent does it.

A node's parent notices its death and empties its queue. If the parent was dead too, or away from
the broker, nobody noticed; but the broker still lists the queue and its edge, which the recorder
reads.
"""

import structlog

from broker.client import Client
from broker.errors import Unavailable
from broker.operator_messages import BrokerOverview
from broker.overview import edges_of
from broker.wire import Adopt
from topology.tree import orphans

log = structlog.get_logger("canopy.api")


class OrphanFinder:
    """Tells the nearest living ancestor of each node found dead in two readings."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._before: dict[str, str] = {}

    async def look(self, overview: BrokerOverview) -> None:
        """One of the recorder's writers."""
        if overview.problem:
            return
        edges = edges_of(overview)
        now = orphans(edges.parents, edges.roots, edges.registered, edges.present)
        try:
            for node, ancestor in now.items():
                if node in self._before:
                    await self._client.control(ancestor, Adopt(node=node))
        except Unavailable as error:
            log.info("dead nodes are looked for later", reason=str(error))
        else:
            self._before = now
