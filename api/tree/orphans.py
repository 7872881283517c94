"""Has the queues of dead nodes emptied where no parent does it.

A node's parent notices its death and empties its queue. If the parent was dead too, or away from
the broker, nobody noticed; but the broker still lists the queue and its edge, which this reads.
"""

import asyncio

import structlog

from api.settings import ENV
from api.tree.watch import TreeUnreadable, read_edges
from broker.client import Client
from broker.errors import Unavailable
from broker.wire import Adopt
from topology.tree import orphans

log = structlog.get_logger("canopy.api")

LOOK_SECONDS = 5.0


async def adopt_orphans(client: Client) -> None:
    """Tells the nearest living ancestor of each node found dead at two looks. Never ends."""
    if not ENV.management_url:
        return
    before: dict[str, str] = {}
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            edges = await read_edges()
            now = orphans(edges.parents, edges.roots, edges.registered, edges.present)
            for node, ancestor in now.items():
                if node in before:
                    await client.control(ancestor, Adopt(node=node))
        except (TreeUnreadable, Unavailable) as error:
            log.info("dead nodes are looked for later", reason=str(error))
        else:
            before = now
