"""Runs an instance: starts its processes in order, restarts what crashes, ends everything in order and in time.

    start:  port mapper -> broker; meanwhile roots and nodes load; the database is migrated -> API
    stop:   API -> nodes -> roots -> broker -> port mapper

The API goes first so that no new work comes in, the broker last so that the nodes can hand back what they hold.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine

from cli import instance
from cli.errors import CliError
from cli.home import Home
from cli.instance import Recorded
from cli.plan import Plan
from cli.process import Child, Spec
from cli.rabbitmq import PrivateBroker

BROKER_SECONDS = 60.0
READY_SECONDS = 600.0  # a large model on a slow disk
# Together below the 10 s in which `down` and Ctrl-C are promised to end.
# Nodes give running jobs 3 s.
STOP_SECONDS = {"api": 1.8, "nodes": 3.7, "roots": 0.8, "broker": 2.5}
_BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_STABLE_SECONDS = 60.0  # after so long without a crash the next one counts as the first

Say = Callable[[str], None]


class Supervisor:
    """The processes of one instance. `private` is None when somebody else's broker is used."""

    def __init__(self, home: Home, private: PrivateBroker | None, say: Say) -> None:
        self._home = home
        self._private = private
        self._say = say
        self._children: dict[str, Child] = {}
        self._groups: dict[str, list[str]] = {group: [] for group in ("broker", "roots", "nodes", "api")}
        self._watchers: set[asyncio.Task[None]] = set()
        self.on_change: Callable[[], None] = lambda: None  # called whenever a process was started
        self.failed: asyncio.Future[CliError] = asyncio.get_running_loop().create_future()

    def recorded(self) -> list[Recorded]:
        """Every process that runs, the launcher first."""
        pids = [("launcher", os.getpid()), *((name, child.pid) for name, child in self._children.items())]
        return [record for name, pid in pids if (record := Recorded.of(name, pid))]

    async def start_broker(self) -> None:
        """Starts the private broker and waits until it accepts connections. Raises CliError."""
        if self._private is None:
            return
        private = self._private
        await self._spawn("broker", Spec("epmd", private.epmd_command()))
        with contextlib.suppress(TimeoutError):  # without it the broker says what is wrong
            await private.wait_epmd(5.0)
        command, env = private.server_command()
        # SIGTERM: the broker closes its message store in order even when the launcher is killed.
        server = await self._spawn("broker", Spec("broker", command, env, at_death_of_launcher=signal.SIGTERM))
        listening = asyncio.create_task(private.wait_listening(BROKER_SECONDS))
        ended = asyncio.create_task(server.ended())
        try:
            await asyncio.wait([listening, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            listening.cancel()
        if ended.done() and not ended.cancelled():
            raise CliError(f"The broker did not start (log: {self._log('broker')})", detail="\n".join(server.tail))
        if not listening.done() or listening.exception():
            raise CliError(f"The broker does not answer after {BROKER_SECONDS:.0f} s (log: {private.log_file})")
        self._watch(self._end_with(server))

    async def run_once(self, spec: Spec) -> list[str]:
        """Runs a short program to its end and returns its last lines. Raises CliError when it fails."""
        child = await self._spawn("api", spec)
        try:
            status = await child.ended()
        finally:
            await child.stop(1.0)
            self._forget(spec.name)
        if status != 0:
            raise CliError(f"{spec.name} failed: {child.last_line()} (log: {self._log(spec.name)})")
        return [line for line in child.tail if line.strip()]

    async def start_nodes(self, plan: Plan) -> None:
        """Starts roots and nodes; returns when all of them serve. They wait for the broker and for their parents
        themselves, and load their models meanwhile. Raises CliError.
        """
        async with asyncio.TaskGroup() as together:
            for spec in plan.roots:
                together.create_task(self._start_node("roots", spec))
            for spec in plan.nodes:
                together.create_task(self._start_node("nodes", spec))

    async def stop(self) -> None:
        """Ends everything, in order, within the sum of STOP_SECONDS."""
        for watcher in self._watchers:
            watcher.cancel()
        hurry = asyncio.create_task(self._private.ready_to_stop()) if self._private and self._groups["broker"] else None
        for group in ("api", "nodes", "roots"):
            await self._stop_group(group)
        if hurry:
            await hurry
        await self._stop_group("broker")

    def kill(self) -> None:
        """Ends everything at once: for the second Ctrl-C."""
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)

    async def _stop_group(self, group: str) -> None:
        # Within the broker's group the port mapper, started first, ends last.
        members = [self._children[name] for name in self._groups[group] if name in self._children]
        if group == "broker":
            for child in reversed(members):
                await child.stop(STOP_SECONDS[group])
        else:
            await asyncio.gather(*(child.stop(STOP_SECONDS[group]) for child in members))

    async def _start_node(self, group: str, spec: Spec) -> None:
        child = await self._spawn(group, spec)
        if not await _in_time(child.until_ready(), READY_SECONDS):
            await self._did_not_start(child)
        self._watch(self._keep(group, child))

    async def start_api(self, spec: Spec, answers: Callable[[], Awaitable[bool]]) -> None:
        """Starts the API; returns when it `answers`. Raises CliError."""
        child = await self._spawn("api", spec)
        ended = asyncio.create_task(child.ended())
        deadline = time.monotonic() + READY_SECONDS
        while not ended.done() and time.monotonic() < deadline:
            if await answers():
                ended.cancel()
                self._watch(self._keep("api", child))
                return
            await asyncio.wait([ended], timeout=0.1)
        ended.cancel()
        await self._did_not_start(child)

    async def _did_not_start(self, child: Child) -> None:
        name, log = child.spec.name, self._log(child.spec.name)
        if child.status is None:
            raise CliError(f"{name} is not ready after {READY_SECONDS:.0f} s (log: {log})")
        raise CliError(f"{name} did not start: {child.last_line().removeprefix(f'node {name}: ')} (log: {log})")

    async def _keep(self, group: str, child: Child) -> None:
        """Restarts one process for as long as the instance runs, later and later while it keeps crashing."""
        crashes = 0
        while True:
            started = time.monotonic()
            status = await child.ended()
            crashes = 0 if time.monotonic() - started > _STABLE_SECONDS else crashes
            pause = _BACKOFF[min(crashes, len(_BACKOFF) - 1)]
            crashes += 1
            name = child.spec.name
            self._say(f"{name} ended ({_cause(status)}): {child.last_line()} - again in {pause:.0f} s")
            await child.stop(0)  # what it left of its group
            await asyncio.sleep(pause)
            try:
                child = await self._spawn(group, child.spec)
            except CliError as error:
                self._say(str(error))  # its end is noticed again at once, and the next pause is longer

    async def _end_with(self, server: Child) -> None:
        status = await server.ended()
        if not self.failed.done():
            log = self._private.log_file if self._private else ""
            self.failed.set_result(CliError(f"The broker ended ({_cause(status)}); everything stops (log: {log})"))

    async def _spawn(self, group: str, spec: Spec) -> Child:
        try:
            child = await Child.start(spec, self._home.logs)
        except OSError as error:
            raise CliError(f"{spec.name} cannot be started: {error}") from error
        self._children[spec.name] = child
        if spec.name not in self._groups[group]:
            self._groups[group].append(spec.name)
        instance.record_processes(self._home, self.recorded())
        self.on_change()
        return child

    def _forget(self, name: str) -> None:
        self._children.pop(name, None)
        instance.record_processes(self._home, self.recorded())

    def _watch(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    def _log(self, name: str) -> str:
        return str(self._home.logs / f"{name}.log")


def first_error(group: BaseExceptionGroup) -> BaseException:
    """The first failure of a task group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _in_time(waiting: Awaitable[bool], seconds: float) -> bool:
    try:
        return await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        return False


def _cause(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
