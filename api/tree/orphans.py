"""Looks after the queues of dead nodes that nobody empties.

A node's parent notices its death and empties its queue. Who died while the parent was dead too, or away from the
broker, nobody has noticed; but the broker still lists the queue and its edge, and this reads them now and then.
"""

import asyncio

import structlog

from api.settings import ENV
from api.tree.watch import Unreadable, read_edges
from broker.client import Client, Unavailable
from broker.wire import Adopt
from topology.tree import orphans

log = structlog.get_logger("canopy.api")

LOOK_SECONDS = 5.0


async def look_after_orphans(client: Client) -> None:
    """Tells the nearest living ancestor of every node that was dead at two looks in a row. Never ends."""
    if not ENV.management_url:
        return
    before: dict[str, str] = {}
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            seen = await read_edges()
            now = orphans(seen.parents, seen.roots, seen.registered, seen.present)
            for node, ancestor in now.items():
                if node in before:
                    await client.control(ancestor, Adopt(node=node))
        except (Unreadable, Unavailable) as error:
            log.info("dead nodes are looked for later", reason=str(error))
        else:
            before = now
