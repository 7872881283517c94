"""Makes faults happen in an instance, and waits until what was hit is back."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import psutil

from bench import harness
from bench.chaos.ledger import ApiDeath, Ledger
from bench.chaos.schedule import NAMES, ROOT, Fault
from bench.errors import BenchError, NotStarted
from bench.harness import Instance
from bench.report import say
from topology import names

BACK_SECONDS = 90.0  # by then, what was hit must be back
REST_SECONDS = 60.0  # after the last answer, until the tree must be at rest
COMMAND_SECONDS = 120.0  # of one of the launcher's commands; a rolling restart takes some 30
_POLL = 0.2


class NotHealed(BenchError):
    """What was hit did not come back in time."""


@dataclass(frozen=True, slots=True)
class Incident:
    """By time.monotonic. `problem`: why it was not `injected`, or what did not heal."""

    fault: Fault
    began: float
    ended: float
    problem: str = ""
    injected: bool = True


class Saboteur:
    """Makes faults in one instance."""

    def __init__(self, canopy: Instance, ledger: Ledger, http: httpx.AsyncClient) -> None:
        self._canopy = canopy
        self._ledger = ledger
        self._http = http
        self._management = canopy.record["management"]  # URL of the broker's API, login included

    async def inject(self, fault: Fault) -> Incident:
        """The fault from its beginning until everything is as before."""
        began = time.monotonic()
        say(str(fault))
        problem, injected = "", True
        try:
            await self._act(fault)
        except NotHealed as error:
            problem = str(error)
        except (NotStarted, httpx.HTTPError, psutil.Error) as error:
            problem, injected = str(error) or repr(error), False
        if problem:
            say(f"          {fault.kind} {fault.target}: {problem}")
        return Incident(fault, began, time.monotonic(), problem, injected)

    async def _act(self, fault: Fault) -> None:
        match fault.kind.split()[0]:
            case "kill":
                await self._kill(fault.target)
            case "stop":
                await self._suspend(fault)
            case "drain":
                await self._drain(fault)
            case _:
                await self._command("restart", "--rolling")

    async def unrest(self) -> list[str]:
        """Waits until nothing runs or waits and every node is back; else says what is wrong."""
        deadline = time.monotonic() + REST_SECONDS
        while True:
            try:
                problems = unrest(await self._nodes())
            except httpx.HTTPError as error:
                problems = [f"the API does not answer: {error!r}"]
            if not problems or time.monotonic() > deadline:
                return problems
            await asyncio.sleep(1.0)

    async def _kill(self, name: str) -> None:
        """SIGKILL; the launcher starts the process again."""
        process = await self._process(name)
        death = ApiDeath(time.monotonic())
        if name == "api":
            self._ledger.api_deaths.append(death)
        process.kill()

        async def is_replaced() -> bool:
            return (await self._process(name)).pid != process.pid

        await _until(is_replaced, f"{name} was not restarted")
        death.ended = time.monotonic()
        await self._until_serves(name)

    async def _suspend(self, fault: Fault) -> None:
        process = await self._process(fault.target)
        process.suspend()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):  # another fault has killed it
                process.resume()
        await self._until_serves(fault.target)

    async def _drain(self, fault: Fault) -> None:
        await self._command("drain", fault.target)
        await asyncio.sleep(fault.seconds)

        async def resumes() -> bool:
            await self._command("resume", fault.target)
            return True

        await _until(resumes, f"{fault.target} was not resumed")

    async def _process(self, name: str) -> psutil.Process:
        """As it runs now: a standby may be the root. Raises NotStarted, httpx.HTTPError."""
        records = self._canopy.processes()
        if name == ROOT:
            pids = [node["pid"] for node in await self._nodes() if node["name"] == ROOT]
            for record in records.values():
                if record.pid in pids:
                    name = record.name
        process = records[name].process() if name in records else None
        if process is None:
            raise NotStarted(f"{name} does not run")
        return process

    async def _nodes(self) -> list[dict[str, Any]]:
        tree = (await self._http.get("/api/tree")).raise_for_status().json()
        nodes: list[dict[str, Any]] = tree["nodes"]
        return nodes

    async def _until_serves(self, name: str) -> None:
        await _until(partial(self._serves, name), f"{name} does not serve again")

    async def _serves(self, name: str) -> bool:
        """A node does when its inbox exists; without a broker, the API is not ready."""
        if name == "broker":
            return await self._serves(ROOT) and await self._serves("api")
        address = f"{self._management}/api/queues/%2F/{names.inbox(name)}"
        if name == "api":
            address = "/readyz"
        return (await self._http.get(address)).status_code == 200

    async def _command(self, *words: str) -> None:
        """Runs a launcher command to its end. Raises NotStarted if it fails or takes too long."""
        command, environment = harness.CANOPY + list(words), self._canopy.environment
        await asyncio.to_thread(harness.output, command, environment, COMMAND_SECONDS)


def unrest(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """What is not at rest, one line each. Pure."""
    by_name = {node["name"]: node for node in nodes}
    problems = []
    for name in (ROOT, *NAMES):
        if name not in by_name:
            problems.append(f"{name} is not in the tree")
    for name, node in by_name.items():
        if node["state"] not in ("idle", "busy"):
            problems.append(f"{name} is {node['state']}: {node['detail']}")
        if node["running"] or node["queued"]:
            problems.append(f"{name} has {node['running']} running and {node['queued']} queued")
    return problems


async def _until(condition: Callable[[], Awaitable[bool]], complaint: str) -> None:
    """What fails in the condition was hit by another fault. Raises NotHealed."""
    deadline = time.monotonic() + BACK_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(NotStarted, httpx.HTTPError):
            if await condition():
                return
        await asyncio.sleep(_POLL)
    raise NotHealed(f"{complaint} within {BACK_SECONDS:.0f} s")
