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
from bench.chaos.victims import BACK_SECONDS, NotDone, NotHealed, Victims
from bench.instance import Instance
from bench.load.ledger import Death, Ledger
from bench.management import Management
from bench.proxy import Proxy
from bench.report import say

ROLL_SECONDS = 300.0  # for a rolling restart
_WATERMARK = "0.4"  # as in rabbitmq.conf
_REASON = 160  # characters of a failed command's output that say why


class Saboteur:
    """Makes faults in one instance. `proxies`: of the far nodes."""

    def __init__(
        self,
        canopy: Instance,
        tree: Tree,
        victims: Victims,
        broker: Management,
        proxies: Mapping[str, Proxy],
        ledger: Ledger,
    ) -> None:
        self._canopy = canopy
        self._tree = tree
        self._victims = victims
        self._broker = broker
        self._proxies = proxies
        self._ledger = ledger

    async def make(self, fault: Fault) -> Happened:
        """The fault from its beginning until everything is as before."""
        began = time.monotonic()
        problem, made = "", True
        say(str(fault))
        try:
            await _DEEDS[fault.kind](self, fault)
        except (
            NotDone,
            NotHealed,
            httpx.HTTPError,
            psutil.Error,
        ) as error:  # psutil: another fault was faster
            problem, made = str(error) or repr(error), isinstance(error, NotHealed)
            say(f"          {fault.kind} {fault.target}: {problem}")
        return Happened(fault, began, time.monotonic(), problem, made)

    async def kill(self, fault: Fault) -> None:
        """SIGKILL; over when a new process serves."""
        await self.restart(fault.target, signal.SIGKILL)

    async def restart(self, name: str, number: signal.Signals) -> None:
        """Ends a process, which its launcher starts again. Raises NotDone, NotHealed."""
        found, process = await self._victims.find(name)
        death = Death(time.monotonic())
        if name == "api":
            self._ledger.api_deaths.append(death)
        process.send_signal(number)
        await self._victims.replaced(found)
        death.ended = time.monotonic()
        await self._victims.back(name)

    async def suspend(self, fault: Fault) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        _, process = await self._victims.find(fault.target)
        process.suspend()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):  # another fault killed it meanwhile
                process.resume()
        await self._victims.back(fault.target)

    async def cut(self, fault: Fault) -> None:
        """A far node's connections end."""
        self._proxies[fault.target].cut()
        await self._victims.back(fault.target)

    async def cut_api(self, _fault: Fault) -> None:
        """The broker ends the API's connections."""
        for each in await self._broker.connections():
            if str(each.get("client_properties", {}).get("connection_name", "")).startswith("api "):
                await self._broker.close(each)
        await self._victims.back("api")

    async def freeze(self, fault: Fault) -> None:
        """Nothing flows between a far node and the broker for a while."""
        proxy = self._proxies[fault.target]
        proxy.freeze()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            proxy.thaw()
        await self._victims.back(fault.target)

    async def drain(self, fault: Fault) -> None:
        """`canopy drain`, and `resume` after a while."""
        await _run(*self._canopy.command("drain", fault.target))
        await asyncio.sleep(fault.seconds)
        await _run_until_done(*self._canopy.command("resume", fault.target))

    async def attach(self, fault: Fault) -> None:
        """`canopy attach`, and back to the old place after a while."""
        await _run(*self._canopy.command("attach", fault.target, "--parent", fault.parent))
        await asyncio.sleep(fault.seconds)
        back = ("attach", fault.target, "--parent", self._tree.parents[fault.target])
        await _run_until_done(*self._canopy.command(*back))

    async def alarm(self, fault: Fault) -> None:
        """The broker believes that its memory is full."""
        await _run(*self._watermark("0.0000001"))
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await _run_until_done(*self._watermark(_WATERMARK))

    async def roll(self, _fault: Fault) -> None:
        """`canopy restart --rolling`."""
        await _run(*self._canopy.command("restart", "--rolling"), seconds=ROLL_SECONDS)

    def _watermark(self, fraction: str) -> tuple[list[str], dict[str, str]]:
        return self._canopy.rabbitmqctl("set_vm_memory_high_watermark", fraction)


_DEEDS: dict[str, Callable[[Saboteur, Fault], Awaitable[None]]] = {
    **dict.fromkeys(("kill leaf", "kill inner", "kill root", "kill API", "kill broker"), Saboteur.kill),
    **dict.fromkeys(("stop leaf", "stop inner", "stop root"), Saboteur.suspend),
    "cut node": Saboteur.cut, "cut API": Saboteur.cut_api, "freeze node": Saboteur.freeze, "drain": Saboteur.drain,
    "attach": Saboteur.attach, "alarm": Saboteur.alarm, "rolling restart": Saboteur.roll,
}  # fmt: skip


async def _run_until_done(command: list[str], environment: Mapping[str, str]) -> None:
    """Runs it again and again: another fault may have hit what it needs. Raises NotHealed."""
    deadline = time.monotonic() + BACK_SECONDS
    while True:
        try:
            return await _run(command, environment)
        except NotDone as error:
            if time.monotonic() > deadline:
                raise NotHealed(str(error)) from error
            await asyncio.sleep(1.0)


async def _run(
    command: list[str], environment: Mapping[str, str], seconds: float = BACK_SECONDS
) -> None:
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
        reason = " ".join(said.decode(errors="replace").split())
        raise NotDone(reason[:_REASON] or f"status {process.returncode}")
