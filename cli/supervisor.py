"""Starts an instance's processes in order, restarts those that crash or freeze, ends them in order.

    start:  port mapper -> broker; meanwhile roots and nodes load; the database is migrated -> API
    stop:   API -> nodes -> roots -> broker -> port mapper

The API stops first so that no new work comes in, the broker last so that nodes can hand back jobs.
A broker that crashes is restarted like the others, and every process reconnects to it by itself.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from broker.exit_status import REMOVED
from cli import environment, liveness
from cli.errors import ProcessError, StateError
from cli.freeze_watch import FreezeWatch
from cli.home import Home
from cli.plan import Plan
from cli.process import Child, Spec
from cli.rabbitmq import PrivateBroker
from cli.roster import Roster
from cli.service import Service

BROKER_SECONDS = 60.0
EPMD_SECONDS = 5.0
API_SECONDS = 120.0  # includes the broker's start
ROOT_SECONDS = 120.0  # it loads no model, and waits for the broker
ONCE_SECONDS = 600.0  # the migration of a large database
LEAVE_SECONDS = 30.0  # an orderly end of a process that is replaced
FINISH = signal.SIGUSR1  # asks the API to finish its open requests, then to end
_BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_STABLE_SECONDS = 60.0  # a crash after this long counts as the first one

Say = Callable[[str], None]
T = TypeVar("T")


class Supervisor:
    """Keeps an instance's processes running. `private`: our own broker, if we start one."""

    def __init__(self, home: Home, private: PrivateBroker | None, say: Say) -> None:
        self.roster = Roster(home, say)
        # Completed by an error in one of our own tasks, after which nothing restarts processes.
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._private = private
        self._say = say
        frozen_seconds = liveness.parse_frozen_seconds(environment.read().frozen_seconds)
        self._freeze_watch = FreezeWatch(frozen_seconds, say, self._note_failure)
        self._services: dict[str, Service] = {}
        self._restart_tasks: dict[str, asyncio.Task[None]] = {}
        self._replacing = False

    # ---- start

    async def start_broker(self) -> None:
        """Starts the private broker and waits until it accepts connections. Raises CliError."""
        if self._private is None:
            return
        private = self._private
        mapper = Service(
            "broker", private.epmd(), self._epmd_serves, BROKER_SECONDS, private.epmd_answers
        )
        child = await self.roster.spawn("broker", mapper.spec)
        await mapper.serves(child)  # if it fails, the broker's own failure says why
        self._supervise(mapper, child)
        server = private.server()
        await self._start(
            Service("broker", server, self._broker_serves, BROKER_SECONDS, private.answers)
        )

    async def _epmd_serves(self, child: Child) -> bool:
        assert self._private is not None  # noqa: S101 - it was started
        return await child.until(self._private.wait_epmd(EPMD_SECONDS))

    async def _broker_serves(self, child: Child) -> bool:
        assert self._private is not None  # noqa: S101 - it was started
        self._private.drop_old_dumps()
        return await child.until(self._private.wait_listening(BROKER_SECONDS))

    async def run_once(self, spec: Spec, within: float | None = ONCE_SECONDS) -> list[str]:
        """Runs a short program and returns its last lines.

        Raises ProcessError when it fails, or has not ended `within` seconds.
        """
        child = await self.roster.spawn("api", spec)
        try:
            with self.roster.starting(spec.name):
                async with asyncio.timeout(within):
                    status = await child.ended()
        except TimeoutError as error:
            raise ProcessError(f"{spec.name} has not ended after {within:.0f} s") from error
        finally:
            await child.stop(1.0)
            self.roster.forget(spec.name)
        if status != 0:
            where = ""
            if not spec.secret:
                where = f" (log: {self.roster.log(spec.name)})"
            raise ProcessError(f"{spec.name} failed: {child.last_line()}{where}")
        return [line for line in child.tail if line.strip()]

    async def start_nodes(self, plan: Plan) -> None:
        """Starts roots and nodes; returns when all of them serve. Raises CliError.

        They load their models while they wait for the broker and their parents.
        """
        async with asyncio.TaskGroup() as together:
            for spec in plan.roots:
                together.create_task(self._start(Service("roots", spec, seconds=ROOT_SECONDS)))
            for spec in plan.nodes:
                together.create_task(self._start(Service("nodes", spec)))

    async def start_api(self, spec: Spec) -> None:
        """Starts the API; returns when it serves. Raises CliError."""
        await self._start(Service("api", spec, seconds=API_SECONDS))

    async def _start(self, service: Service) -> None:
        child = await self.roster.spawn(service.group, service.spec)
        await self._until_serves(service, child)
        self._supervise(service, child)

    # ---- replace a process while all others serve

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Allows one rolling restart at a time, as two would stop several processes at once.

        Raises StateError.
        """
        if self._replacing:
            raise StateError("A rolling restart is under way already.")
        self._replacing = True
        try:
            yield
        finally:
            self._replacing = False

    def has(self, name: str) -> bool:
        """Whether a process of that name is supervised here."""
        return name in self._services

    def pid(self, name: str) -> int:
        """The process id."""
        return self.roster[name].pid

    async def replace(self, name: str) -> None:
        """Ends the process, starts it again and returns once it serves.

        Raises CliError; the process is then restarted like one that crashed.
        """
        service = self._services[name]
        child = await self._release(name)
        try:
            self.roster.mark(name, "restarting")
            if service.group == "broker" and self._private:
                await self._private.prepare_stop()
            await child.stop(LEAVE_SECONDS)
            child = await self.roster.spawn(service.group, service.spec)
            await self._until_serves(service, child)
        finally:
            self._supervise(service, child)

    async def hand_over(self, name: str, grace: float) -> None:
        """Starts a successor; once it serves, the old process gets `grace` seconds to finish its
        open requests. Raises CliError; the old process then stays.
        """
        service, leaving = self._services[name], f"{name}-leaving"
        old = await self._release(name)
        self.roster.add(service.group, leaving, old, "leaving")
        try:
            self._supervise(service, await self._start_beside(service))
        except BaseException:  # cancellation included
            self.roster.forget(leaving)
            self.roster.add(service.group, name, old, "running")
            self._supervise(service, old)
            raise
        old.send(FINISH)
        await _in_time(old.ended(), grace)
        await old.stop(LEAVE_SECONDS)
        self.roster.forget(leaving)

    async def _start_beside(self, service: Service) -> Child:
        self.roster.mark(service.name, "restarting")
        child = await self.roster.spawn(service.group, service.spec)
        try:
            await self._until_serves(service, child)
        except BaseException:
            await child.stop(1.0)
            raise
        return child

    # ---- nodes that come and go while the instance runs

    def names(self, group: str) -> list[str]:
        """The processes of that group which are supervised, in the order of their starts."""
        return [name for name, service in self._services.items() if service.group == group]

    def last_line(self, name: str) -> str:
        """The latest output of a process; "" if there is none of that name."""
        if name not in self.roster:
            return ""
        return self.roster[name].last_line()

    async def add(self, group: str, spec: Spec) -> None:
        """Starts one more process; returns when it serves. Raises ProcessError; it is then gone."""
        child = await self.roster.spawn(group, spec)
        service = Service(group, spec)
        try:
            await self._until_serves(service, child)
        except ProcessError as error:
            await child.stop(1.0)
            self.roster.forget(spec.name)
            raise ProcessError(str(error), detail="\n".join(child.tail)) from error
        except asyncio.CancelledError:
            await child.stop(1.0)
            self.roster.forget(spec.name)
            raise
        self._supervise(service, child)

    async def remove(self, name: str) -> None:
        """Ends a process in order, for good. Raises StateError if there is none of that name."""
        if name not in self._restart_tasks:
            raise StateError(f"There is no process {name} here.")
        child = await self._release(name)
        self._services.pop(name, None)
        self.roster.mark(name, "leaving")
        await child.stop(LEAVE_SECONDS)
        self.roster.forget(name)

    def kill(self, name: str) -> None:
        """Kills a process at once; it is started again like one that crashed.

        Raises StateError if there is none of that name.
        """
        if name not in self._services:
            raise StateError(f"There is no process {name} here.")
        self.roster[name].kill()

    # ---- end

    async def stop(self) -> None:
        """Ends everything, in order, within the sum of STOP_SECONDS."""
        self.roster.close()
        for task in self._restart_tasks.values():
            task.cancel()
        preparing = None
        if self._private and "epmd" in self._services:
            preparing = asyncio.create_task(self._private.prepare_stop())
        for group in ("api", "nodes", "roots"):
            await self.roster.stop(group)
        if preparing:
            await preparing
        await self.roster.stop("broker")

    # ---- one process

    async def _until_serves(self, service: Service, child: Child) -> None:
        with self.roster.starting(service.name):
            async with self._freeze_watch.watched(service, child):
                serves = await _in_time(service.serves(child), service.seconds)
        if not serves:
            raise self._failed_start(service, child)
        self.roster.mark(service.name, "running")

    def _failed_start(self, service: Service, child: Child) -> ProcessError:
        name, log = service.name, self.roster.log(service.name)
        if child.status is None:
            return ProcessError(f"{name} is not ready after {service.seconds:.0f} s (log: {log})")
        if service.group == "broker":  # its last line is a piece of a long Erlang term
            detail = "\n".join(child.tail)
            return ProcessError(f"The broker did not start (log: {log})", detail=detail)
        reason = child.last_line().removeprefix(f"node {name}: ")
        return ProcessError(f"{name} did not start: {reason} (log: {log})")

    def _supervise(self, service: Service, child: Child) -> None:
        """Restarts the process from now on when it ends."""
        name = service.name
        self._services[name] = service
        task = asyncio.create_task(self._restart_for_ever(service, child), name=f"restart {name}")
        task.add_done_callback(self._note_failure)
        self._restart_tasks[name] = task

    def _note_failure(self, task: "asyncio.Task[None]") -> None:
        """Makes an error in one of our own tasks end the launcher, instead of passing unseen."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not self.failure.done():
            self.failure.set_result(error)

    async def _release(self, name: str) -> Child:
        """Stops restarting the process, and returns it."""
        task = self._restart_tasks.pop(name)
        task.cancel()
        await asyncio.wait([task])
        return self.roster[name]

    async def _restart_for_ever(self, service: Service, child: Child) -> None:
        """Restarts a process whenever it ends, with longer pauses while it keeps crashing."""
        crashes = 0
        while True:
            started = time.monotonic()
            async with self._freeze_watch.watched(service, child):
                if crashes:
                    await self._until_back(service, child)
                status = await child.ended()
            if time.monotonic() - started > _STABLE_SECONDS:
                crashes = 0
            if service.group in ("nodes", "roots") and status == REMOVED:
                await self._note_removed(service.name, child)
                return
            pause = _BACKOFF[min(crashes, len(_BACKOFF) - 1)]
            crashes += 1
            self.roster.mark(service.name, "restarting")
            reason = f"{service.name} ended ({_cause(status)}): {child.last_line()}"
            self._say(f"{reason} - again in {pause:.0f} s")
            await child.stop(0)  # ends the rest of its process group
            await asyncio.sleep(pause)
            try:
                child = await self.roster.spawn(service.group, service.spec)
            except ProcessError as error:
                self._say(str(error))  # the old child has ended: the loop tries again, later

    async def _note_removed(self, name: str, child: Child) -> None:
        """An operator has removed the node from the tree: it is not started again."""
        await child.stop(0)
        self.roster.mark(name, "removed")
        del self._services[name]
        self._say(f"{name} was removed from the tree")

    async def _until_back(self, service: Service, child: Child) -> None:
        """Waits until a restarted process serves or has ended; kills it after its time."""
        serves = await _in_time(service.serves(child), service.seconds)
        if serves:
            self.roster.mark(service.name, "running")
            self._say(f"{service.name} is back")
        elif child.status is None:
            self._say(f"{service.name} is not ready after {service.seconds:.0f} s: killing it")
            child.kill()


async def _in_time(waiting: Awaitable[T], seconds: float) -> T | None:
    try:
        return await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        return None


def _cause(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
