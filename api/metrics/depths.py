"""The depths of the broker's queues, as a scrape shows them."""

import asyncio
import time

from api.metrics.tree import NODES
from broker.client import Client
from broker.errors import Unavailable
from topology import names

DEPTHS_SECONDS = 5.0  # for which the depths of queues are kept
_PATIENCE = 2.0  # seconds that a scrape waits for them


class Depths:
    """Jobs ready in the queues of all nodes and of dead letters, asked for now and then."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._depths: dict[str, int] = {}
        self._asked = -DEPTHS_SECONDS
        self._lock = asyncio.Lock()

    async def read(self) -> dict[str, int]:
        """The depths, at most DEPTHS_SECONDS old; none of what the broker does not tell in time."""
        async with self._lock:
            if time.monotonic() - self._asked >= DEPTHS_SECONDS:
                self._depths = await self._ask()
                self._asked = time.monotonic()
        return self._depths

    async def _ask(self) -> dict[str, int]:
        queues = [names.node(name) for name in self._client.nodes()][:NODES]
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._client.depths([names.DEAD_QUEUE, *queues])
        except (Unavailable, TimeoutError):
            return {}
