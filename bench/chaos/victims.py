"""Finds the processes that faults hit, as they are now, and tells when they are back."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import httpx
import psutil

from bench.chaos.schedule import ROOT
from bench.instance import Instance
from bench.management import Management
from cli.processes import ProcessRecord

BACK_SECONDS = 90.0  # what was hit must be back by then
_LOOK = 0.2  # seconds between looks


class NotDone(Exception):
    """The fault could not be made; the text says why."""


class NotHealed(Exception):
    """What was hit did not come back in time."""


class Victims:
    """The processes of one instance, and the far nodes."""

    def __init__(self, canopy: Instance, broker: Management) -> None:
        self._canopy = canopy
        self._broker = broker
        key = {"Authorization": f"Bearer {canopy.key}"}
        self._http = httpx.AsyncClient(
            base_url=canopy.url, headers=key, timeout=5.0, trust_env=False
        )

    async def close(self) -> None:
        """Gives the connections back."""
        await self._http.aclose()

    async def find(self, name: str) -> tuple[ProcessRecord, psutil.Process]:
        """The process as it runs now. Raises NotDone if it stays away, which is another fault's doing."""
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline:
            found = self._canopy.processes().get(await self._role(name))
            if found and (process := found.process()):
                return found, process
            await asyncio.sleep(_LOOK)
        raise NotDone(f"{name} does not run")

    async def replaced(self, former: ProcessRecord) -> None:
        """Returns when another process runs in its place. Raises NotHealed."""
        await _until(lambda: self._is_replaced(former), f"{former.name} was not started again")

    async def back(self, name: str) -> None:
        """Returns when `name` serves. Raises NotHealed."""
        await _until(lambda: self._serves(name), f"{name} does not serve again")

    async def _role(self, name: str) -> str:
        """Which process has that name in the tree: a standby may be the root."""
        if name == ROOT:
            with contextlib.suppress(httpx.HTTPError):
                tree = (await self._http.get("/api/tree")).raise_for_status().json()
                pids = {node["pid"] for node in tree["nodes"] if node["name"] == ROOT}
                return next(
                    (each.name for each in self._canopy.processes().values() if each.pid in pids),
                    name,
                )
        return name

    async def _is_replaced(self, former: ProcessRecord) -> bool:
        found = self._canopy.processes().get(former.name)
        return found is not None and found.pid != former.pid and found.process() is not None

    async def _serves(self, name: str) -> bool:
        try:
            if name == "api":
                return (await self._http.get("/readyz")).status_code == 200
            if name == "broker":
                return await self._broker.has_node(ROOT) and await self._serves("api")
            return await self._broker.has_node(name)
        except httpx.TransportError:
            return False


async def _until(condition: Callable[[], Awaitable[bool]], complaint: str) -> None:
    deadline = time.monotonic() + BACK_SECONDS
    while not await condition():
        if time.monotonic() > deadline:
            raise NotHealed(f"{complaint} within {BACK_SECONDS:.0f} s")
        await asyncio.sleep(_LOOK)
