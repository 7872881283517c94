"""What /readyz asks: does the broker answer, and can the database be read and written?"""

import asyncio

from asgiref.sync import sync_to_async

from api.health.probe import Probe
from api.health.storage import StorageCheck
from broker.client import Client

NO_BROKER = "the broker takes no jobs: it is not connected, or short of memory or disk"
SILENT_BROKER = "the broker does not answer: its connection may be cut off"
SILENT_DATABASE = "the database does not answer"


class Readiness:
    """The probes of one process."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._broker_probe = Probe(self._check_broker, silence=SILENT_BROKER)
        storage = sync_to_async(StorageCheck().problem)
        self._storage_probe = Probe(storage, silence=SILENT_DATABASE)

    async def problems(self) -> list[str]:
        """What is missing now, the broker's problem first."""
        problems = await asyncio.gather(self._broker_problem(), self._storage_probe.problem())
        return [problem for problem in problems if problem is not None]

    async def _broker_problem(self) -> str | None:
        if not self._client.connected:
            return NO_BROKER
        return await self._broker_probe.problem()

    async def _check_broker(self) -> str | None:
        if await self._client.responds():
            return None
        return SILENT_BROKER
