"""Makes the faults happen, and waits until what was hit is back."""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping

import httpx
import psutil

from bench.chaos.schedule import Fault, Happened, Tree
from bench.instance import Instance
from bench.load.ledger import Ledger
from bench.management import Management
from bench.proxy import Proxy
from bench.report import say

BACK_SECONDS = 90.0  # what was hit must be back by then
_LOOK = 0.2  # seconds between looks
_WATERMARK = "0.4"  # as in rabbitmq.conf


class NotDone(Exception):
    """The fault could not be made; the text says why."""


class NotHealed(Exception):
    """What was hit did not come back in time."""


class Saboteur:
    """Makes faults in one instance. `proxies`: of the far nodes."""

    def __init__(
        self, canopy: Instance, tree: Tree, broker: Management, proxies: Mapping[str, Proxy], ledger: Ledger
    ) -> None:
        self._canopy = canopy
        self._tree = tree
        self._broker = broker
        self._proxies = proxies
        self._ledger = ledger
        self._http = httpx.AsyncClient(base_url=canopy.url, timeout=5.0, trust_env=False)

    async def make(self, fault: Fault) -> Happened:
        """The fault from its beginning until everything is as before."""
        began = time.monotonic()
        problem, made = "", True
        say(str(fault))
        try:
            await _DEEDS[fault.kind](self, fault)
        except (NotDone, NotHealed, httpx.HTTPError) as error:
            problem, made = str(error) or repr(error), isinstance(error, NotHealed)
            say(f"          {fault.kind} {fault.target}: {problem}")
        return Happened(fault, began, time.monotonic(), problem, made)

    async def close(self) -> None:
        """Gives the connections back."""
        await self._http.aclose()

    async def kill(self, fault: Fault) -> None:
        """SIGKILL; over when a new process serves."""
        await self.restart(fault.target, signal.SIGKILL)

    async def restart(self, name: str, number: signal.Signals) -> None:
        """Ends a process, which its launcher starts again. Raises NotDone, NotHealed."""
        process = await self._process(name)
        if name == "api":
            self._ledger.api_deaths.append(time.monotonic())
        process.send_signal(number)
        await self._until(lambda: self._is_new(name, process.pid), f"{name} was not started again")
        await self._until(lambda: self._serves(name), f"{name} does not serve again")

    async def suspend(self, fault: Fault) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        process = await self._process(fault.target)
        process.suspend()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):  # another fault killed it meanwhile
                process.resume()
        await self._until(lambda: self._serves(fault.target), f"{fault.target} does not serve again")

    async def cut(self, fault: Fault) -> None:
        """A far node's connections end."""
        self._proxies[fault.target].cut()
        await self._until(lambda: self._serves(fault.target), f"{fault.target} does not serve again")

    async def cut_api(self, _fault: Fault) -> None:
        """The broker ends the API's connections."""
        for each in await self._broker.connections():
            if str(each.get("client_properties", {}).get("connection_name", "")).startswith("api "):
                await self._broker.close(each)
        await self._until(lambda: self._serves("api"), "the API is not ready again")

    async def freeze(self, fault: Fault) -> None:
        """Nothing flows between a far node and the broker for a while."""
        proxy = self._proxies[fault.target]
        proxy.freeze()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            proxy.thaw()
        await self._until(lambda: self._serves(fault.target), f"{fault.target} does not serve again")

    async def drain(self, fault: Fault) -> None:
        """`canopy drain`, and `resume` after a while."""
        await self._command("drain", fault.target)
        await asyncio.sleep(fault.seconds)
        await self._undo("resume", fault.target)

    async def attach(self, fault: Fault) -> None:
        """`canopy attach`, and back to the old place after a while."""
        await self._command("attach", fault.target, "--parent", fault.parent)
        await asyncio.sleep(fault.seconds)
        await self._undo("attach", fault.target, "--parent", self._tree.parents[fault.target])

    async def alarm(self, fault: Fault) -> None:
        """The broker believes that its memory is full."""
        await self._rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await self._rabbitmqctl("set_vm_memory_high_watermark", _WATERMARK)

    async def roll(self, _fault: Fault) -> None:
        """`canopy restart --rolling`."""
        await self._command("restart", "--rolling", seconds=300)

    async def _process(self, name: str) -> psutil.Process:
        """The process as it runs now. Raises NotDone if it stays away, which is another fault's doing."""
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline:
            if (recorded := self._canopy.processes().get(name)) and (process := recorded.process()):
                return process
            await asyncio.sleep(_LOOK)
        raise NotDone(f"{name} does not run")

    async def _is_new(self, name: str, pid: int) -> bool:
        recorded = self._canopy.processes().get(name)
        return recorded is not None and recorded.pid != pid and recorded.process() is not None

    async def _serves(self, name: str) -> bool:
        try:
            if name == "api":
                return (await self._http.get("/readyz")).status_code == 200
            if name == "broker":
                return await self._broker.has_node("root") and await self._serves("api")
            return await self._broker.has_node(name)
        except httpx.TransportError:
            return False

    async def _until(self, condition: Callable[[], Awaitable[bool]], complaint: str) -> None:
        deadline = time.monotonic() + BACK_SECONDS
        while not await condition():
            if time.monotonic() > deadline:
                raise NotHealed(f"{complaint} within {BACK_SECONDS:.0f} s")
            await asyncio.sleep(_LOOK)

    async def _command(self, *words: str, seconds: float = BACK_SECONDS) -> None:
        await _run(*self._canopy.command(*words), seconds)

    async def _undo(self, *words: str) -> None:
        """Tries again and again: another fault may have hit the node meanwhile."""
        deadline = time.monotonic() + BACK_SECONDS
        while True:
            try:
                return await self._command(*words)
            except NotDone as error:
                if time.monotonic() > deadline:
                    raise NotHealed(str(error)) from error
                await asyncio.sleep(1.0)

    async def _rabbitmqctl(self, *words: str) -> None:
        await _run(*self._canopy.rabbitmqctl(*words), BACK_SECONDS)


_DEEDS: dict[str, Callable[[Saboteur, Fault], Awaitable[None]]] = {
    **dict.fromkeys(("kill leaf", "kill inner", "kill root", "kill API", "kill broker"), Saboteur.kill),
    **dict.fromkeys(("stop leaf", "stop inner", "stop root"), Saboteur.suspend),
    "cut node": Saboteur.cut, "cut API": Saboteur.cut_api, "freeze node": Saboteur.freeze, "drain": Saboteur.drain,
    "attach": Saboteur.attach, "alarm": Saboteur.alarm, "rolling restart": Saboteur.roll,
}  # fmt: skip


async def _run(command: list[str], environment: Mapping[str, str], seconds: float) -> None:
    """Runs a command to its end. Raises NotDone if it fails or takes longer."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        raise NotDone(f"{' '.join(command[1:])} takes longer than {seconds:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise NotDone(said.decode(errors="replace").strip()[-300:] or f"status {process.returncode}")
