"""Makes faults happen in an instance, and waits until what was hit is back."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import httpx
import psutil

from bench.chaos.broker import Broker
from bench.chaos.ledger import ApiDeath, Ledger
from bench.chaos.schedule import ROOT, Fault, Tree
from bench.errors import BenchError
from bench.harness import Instance
from bench.report import say
from cli.processes import ProcessRecord
from topology import names

BACK_SECONDS = 90.0  # by then, what was hit must be back
ROLL_SECONDS = 300.0  # for a rolling restart
REST_SECONDS = 60.0  # after the last answer, until the tree must be at rest
_POLL = 0.2
_REASON = 160  # characters of a failed command's output that say why


class NotInjected(BenchError):
    """The fault could not be made; another one was faster, or the instance refused it."""


class NotHealed(BenchError):
    """What was hit did not come back in time."""


@dataclass(frozen=True, slots=True)
class Incident:
    """A fault from its beginning until everything was as before, by `time.monotonic`.

    `injected`: False if it could not be made; `problem`: why, or what did not heal.
    """

    fault: Fault
    began: float
    ended: float
    problem: str = ""
    injected: bool = True


class Saboteur:
    """Makes faults in one instance."""

    def __init__(self, canopy: Instance, tree: Tree, broker: Broker, ledger: Ledger) -> None:
        self._canopy = canopy
        self._tree = tree
        self._broker = broker
        self._ledger = ledger
        self._http = httpx.AsyncClient(
            base_url=canopy.url,
            headers={"Authorization": f"Bearer {canopy.key}"},
            timeout=5.0,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def inject(self, fault: Fault) -> Incident:
        """The fault from its beginning until everything is as before."""
        began = time.monotonic()
        say(str(fault))
        problem, injected = "", True
        try:
            await _ACTIONS[fault.kind](self, fault)
        except NotHealed as error:
            problem = str(error)
        except (NotInjected, httpx.HTTPError, psutil.Error) as error:
            problem, injected = str(error) or repr(error), False
        if problem:
            say(f"          {fault.kind} {fault.target}: {problem}")
        return Incident(fault, began, time.monotonic(), problem, injected)

    async def unrest(self) -> list[str]:
        """Waits until nothing runs or waits and every node is back; else says what is wrong."""
        deadline = time.monotonic() + REST_SECONDS
        while True:
            try:
                problems = unrest(await self._nodes(), await self._broker.queues(), self._tree)
            except httpx.HTTPError as error:
                problems = [f"neither API nor broker answers: {error!r}"]
            if not problems or time.monotonic() > deadline:
                return problems
            await asyncio.sleep(1.0)

    async def _kill(self, fault: Fault) -> None:
        """SIGKILL; the launcher starts the process again."""
        record, process = await self._find(fault.target)
        death = ApiDeath(time.monotonic())
        if fault.target == "api":
            self._ledger.api_deaths.append(death)
        process.kill()
        await _until(partial(self._is_replaced, record), f"{record.name} was not started again")
        death.ended = time.monotonic()
        await self._back(fault.target)

    async def _suspend(self, fault: Fault) -> None:
        _, process = await self._find(fault.target)
        process.suspend()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):  # another fault has killed it
                process.resume()
        await self._back(fault.target)

    async def _cut_node(self, fault: Fault) -> None:
        await self._broker.cut(f"node {fault.target}")
        await self._back(fault.target)

    async def _cut_api(self, _fault: Fault) -> None:
        await self._broker.cut("api")
        await self._back("api")

    async def _drain(self, fault: Fault) -> None:
        await _run(*self._canopy.command("drain", fault.target))
        await asyncio.sleep(fault.seconds)
        await _run_until_done(*self._canopy.command("resume", fault.target))

    async def _attach(self, fault: Fault) -> None:
        await _run(*self._canopy.command("attach", fault.target, "--parent", fault.parent))
        await asyncio.sleep(fault.seconds)
        old_parent = self._tree.parents[fault.target]
        await _run_until_done(*self._canopy.command("attach", fault.target, "--parent", old_parent))

    async def _roll(self, _fault: Fault) -> None:
        await _run(*self._canopy.command("restart", "--rolling"), seconds=ROLL_SECONDS)

    async def _find(self, name: str) -> tuple[ProcessRecord, psutil.Process]:
        """The process as it runs now. Raises NotInjected if it stays away."""
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline:
            record = self._canopy.processes().get(await self._process_of(name))
            process = record.process() if record else None
            if record and process:
                return record, process
            await asyncio.sleep(_POLL)
        raise NotInjected(f"{name} does not run")

    async def _process_of(self, name: str) -> str:
        """The process with that name in the tree: a standby may be the root."""
        if name == ROOT:
            with contextlib.suppress(httpx.HTTPError):
                pids = [node["pid"] for node in await self._nodes() if node["name"] == ROOT]
                for record in self._canopy.processes().values():
                    if record.pid in pids:
                        return record.name
        return name

    async def _nodes(self) -> list[dict[str, Any]]:
        response = (await self._http.get("/api/tree")).raise_for_status()
        nodes: list[dict[str, Any]] = response.json()["nodes"]
        return nodes

    async def _back(self, name: str) -> None:
        await _until(partial(self._serves, name), f"{name} does not serve again")

    async def _is_replaced(self, former: ProcessRecord) -> bool:
        record = self._canopy.processes().get(former.name)
        return record is not None and record.pid != former.pid and record.process() is not None

    async def _serves(self, name: str) -> bool:
        try:
            if name == "api":
                return (await self._http.get("/readyz")).status_code == 200
            if name == "broker":
                return await self._broker.has_node(ROOT) and await self._serves("api")
            return await self._broker.has_node(name)
        except httpx.TransportError:
            return False


_ACTIONS: dict[str, Callable[[Saboteur, Fault], Awaitable[None]]] = {
    "kill leaf": Saboteur._kill,
    "kill inner": Saboteur._kill,
    "kill root": Saboteur._kill,
    "kill API": Saboteur._kill,
    "kill broker": Saboteur._kill,
    "stop leaf": Saboteur._suspend,
    "stop inner": Saboteur._suspend,
    "stop root": Saboteur._suspend,
    "cut node": Saboteur._cut_node,
    "cut API": Saboteur._cut_api,
    "drain": Saboteur._drain,
    "attach": Saboteur._attach,
    "rolling restart": Saboteur._roll,
}


def unrest(nodes: list[dict[str, Any]], queues: list[dict[str, Any]], tree: Tree) -> list[str]:
    """What is not at rest, one line each. Pure."""
    by_name = {node["name"]: node for node in nodes}
    problems = [
        f"{name} is not in the tree" for name in (ROOT, *tree.parents) if name not in by_name
    ]
    for name, node in by_name.items():
        if node["state"] not in ("idle", "busy"):
            problems.append(f"{name} is {node['state']}: {node['detail']}")
        if node["running"] or node["queued"]:
            problems.append(f"{name} has {node['running']} running and {node['queued']} queued")
    for queue in queues:
        messages = queue.get("messages", 0)
        if messages and (names.node_of(queue["name"]) or queue["name"] == names.DEAD_QUEUE):
            problems.append(f"{queue['name']} holds {messages} messages")
    return problems


async def _until(condition: Callable[[], Awaitable[bool]], complaint: str) -> None:
    deadline = time.monotonic() + BACK_SECONDS
    while not await condition():
        if time.monotonic() > deadline:
            raise NotHealed(f"{complaint} within {BACK_SECONDS:.0f} s")
        await asyncio.sleep(_POLL)


async def _run_until_done(command: list[str], environment: Mapping[str, str]) -> None:
    """Tries again and again: another fault may have hit what it needs. Raises NotHealed."""
    deadline = time.monotonic() + BACK_SECONDS
    while True:
        try:
            return await _run(command, environment)
        except NotInjected as error:
            if time.monotonic() > deadline:
                raise NotHealed(str(error)) from error
            await asyncio.sleep(1.0)


async def _run(
    command: list[str], environment: Mapping[str, str], seconds: float = BACK_SECONDS
) -> None:
    """Runs a command to its end. Raises NotInjected if it fails or takes longer."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, output = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        message = f"{' '.join(command[1:])} takes longer than {seconds:.0f} s"
        raise NotInjected(message) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        reason = " ".join(output.decode(errors="replace").split())
        raise NotInjected(reason[:_REASON] or f"status {process.returncode}")
