"""Runs an instance: starts its processes in order, restarts what crashes, ends everything in order and in time.

    start:  port mapper -> broker; meanwhile roots and nodes load; the database is migrated -> API
    stop:   API -> nodes -> roots -> broker -> port mapper

The API goes first so that no new work comes in, the broker last so that the nodes can hand back what they hold.
A broker that ends is restarted like all others: every process reconnects to it by itself. A process that
gives no sign of life is ended, and then restarted like one that crashed.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from broker.heartbeat import WHERE_ARE_YOU
from cli import liveness
from cli.errors import CliError
from cli.home import Home
from cli.liveness import Silence
from cli.plan import Plan
from cli.process import Child, Spec
from cli.rabbitmq import PrivateBroker
from cli.roster import Roster

BROKER_SECONDS = 60.0
EPMD_SECONDS = 5.0
API_SECONDS = 120.0  # the broker's start is in them
READY_SECONDS = 600.0  # a large model on a slow disk
LEAVE_SECONDS = 30.0  # for a process that is replaced, to end in order
FINISH = (
    signal.SIGUSR1
)  # asks the API to end its open requests, however long they take, and then itself
ASK_SECONDS = 3.0  # between two questions to a process that gives no signs by itself
_LAST_WORDS_SECONDS = 1.0  # for a frozen process to log where it is
_BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_STABLE_SECONDS = 60.0  # after so long without a crash the next one counts as the first

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """A process that is there for as long as the instance runs. `serves`: waits until it does, False if it ends."""

    group: str
    spec: Spec
    serves: Callable[[Child], Awaitable[bool]] = Child.until_ready
    seconds: float = READY_SECONDS  # that it may take to serve
    answers: Callable[[], Awaitable[bool]] | None = (
        None  # for one that gives no signs of life by itself
    )

    @property
    def name(self) -> str:
        """The process's name."""
        return self.spec.name


class Supervisor:
    """Keeps an instance's processes running. `private` is None when somebody else's broker is used."""

    def __init__(self, home: Home, private: PrivateBroker | None, say: Say) -> None:
        self.roster = Roster(home, say)
        # Done if one of our own tasks has failed: then nobody restarts a process any more.
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._frozen_seconds = liveness.frozen_seconds()
        self._private = private
        self._say = say
        self._kept: dict[str, Kept] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._replacing = False

    # ---- start

    async def start_broker(self) -> None:
        """Starts the private broker and waits until it accepts connections. Raises CliError."""
        if self._private is None:
            return
        private = self._private
        mapper = Kept(
            "broker", private.epmd(), self._epmd_serves, BROKER_SECONDS, private.epmd_answers
        )
        child = await self.roster.spawn("broker", mapper.spec)
        await mapper.serves(child)  # if it does not, the broker says what is wrong
        self._keep(mapper, child)
        server = private.server()
        await self._start(
            Kept("broker", server, self._broker_serves, BROKER_SECONDS, private.answers)
        )

    async def _epmd_serves(self, child: Child) -> bool:
        assert self._private is not None  # noqa: S101 - it has been started
        return await child.until(self._private.wait_epmd(EPMD_SECONDS))

    async def _broker_serves(self, child: Child) -> bool:
        assert self._private is not None  # noqa: S101 - it has been started
        self._private.drop_old_dumps()  # each crash may leave one
        return await child.until(self._private.wait_listening(BROKER_SECONDS))

    async def run_once(self, spec: Spec) -> list[str]:
        """Runs a short program to its end and returns its last lines. Raises CliError when it fails."""
        child = await self.roster.spawn("api", spec)
        try:
            status = await child.ended()
        finally:
            await child.stop(1.0)
            self.roster.forget(spec.name)
        if status != 0:
            where = "" if spec.secret else f" (log: {self.roster.log(spec.name)})"
            raise CliError(f"{spec.name} failed: {child.last_line()}{where}")
        return [line for line in child.tail if line.strip()]

    async def start_nodes(self, plan: Plan) -> None:
        """Starts roots and nodes; returns when all of them serve. They wait for the broker and for their parents
        themselves, and load their models meanwhile. Raises CliError.
        """
        async with asyncio.TaskGroup() as together:
            for spec in plan.roots:
                together.create_task(self._start(Kept("roots", spec)))
            for spec in plan.nodes:
                together.create_task(self._start(Kept("nodes", spec)))

    async def start_api(self, spec: Spec) -> None:
        """Starts the API; returns when it serves. Raises CliError."""
        await self._start(Kept("api", spec, seconds=API_SECONDS))

    async def _start(self, kept: Kept) -> None:
        child = await self.roster.spawn(kept.group, kept.spec)
        await self._until_serves(kept, child)
        self._keep(kept, child)

    # ---- replace a process while all others serve

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """For one at a time: two would stop more than one process at once. Raises CliError for a second."""
        if self._replacing:
            raise CliError("A rolling restart is under way already.")
        self._replacing = True
        try:
            yield
        finally:
            self._replacing = False

    def has(self, name: str) -> bool:
        """Whether a process of that name is kept running here."""
        return name in self._kept

    def pid(self, name: str) -> int:
        """The id of the process of that name."""
        return self.roster[name].pid

    async def replace(self, name: str) -> None:
        """Asks the process to leave, starts it again and returns once it serves. Raises CliError; it is kept then
        like one that crashed.
        """
        kept = self._kept[name]
        child = await self._release(name)
        try:
            self.roster.mark(name, "restarting")
            if kept.group == "broker" and self._private:
                await self._private.ready_to_stop()
            await child.stop(LEAVE_SECONDS)
            child = await self.roster.spawn(kept.group, kept.spec)
            await self._until_serves(kept, child)
        finally:
            self._keep(kept, child)

    async def hand_over(self, name: str, grace: float) -> None:
        """Starts another process beside it and, when that serves, lets the old one finish its open requests, for
        `grace` seconds at most. Raises CliError; the old one stays then.
        """
        kept, leaving = self._kept[name], f"{name}-leaving"
        old = await self._release(name)
        self.roster.add(kept.group, leaving, old, "leaving")
        try:
            self._keep(kept, await self._start_beside(kept))
        except BaseException:  # whatever it was, the old one goes on
            self.roster.forget(leaving)
            self.roster.add(kept.group, name, old, "running")
            self._keep(kept, old)
            raise
        old.send(FINISH)
        await _in_time(old.ended(), grace)
        await old.stop(LEAVE_SECONDS)
        self.roster.forget(leaving)

    async def _start_beside(self, kept: Kept) -> Child:
        self.roster.mark(kept.name, "restarting")
        child = await self.roster.spawn(kept.group, kept.spec)
        try:
            await self._until_serves(kept, child)
        except BaseException:
            await child.stop(1.0)
            raise
        return child

    # ---- end

    async def stop(self) -> None:
        """Ends everything, in order, within the sum of STOP_SECONDS."""
        self.roster.close()
        for keeper in self._keepers.values():
            keeper.cancel()
        hurry = (
            asyncio.create_task(self._private.ready_to_stop())
            if self._private and "epmd" in self._kept
            else None
        )
        for group in ("api", "nodes", "roots"):
            await self.roster.stop(group)
        if hurry:
            await hurry
        await self.roster.stop("broker")

    # ---- one process

    async def _until_serves(self, kept: Kept, child: Child) -> None:
        async with self._watched(kept, child):
            serves = await _in_time(kept.serves(child), kept.seconds)
        if not serves:
            raise self._complaint(kept, child)
        self.roster.mark(kept.name, "running")

    def _complaint(self, kept: Kept, child: Child) -> CliError:
        name, log = kept.name, self.roster.log(kept.name)
        if child.status is None:
            return CliError(f"{name} is not ready after {kept.seconds:.0f} s (log: {log})")
        if kept.group == "broker":  # what it said last is one line of a long Erlang term
            return CliError(f"The broker did not start (log: {log})", detail="\n".join(child.tail))
        return CliError(
            f"{name} did not start: {child.last_line().removeprefix(f'node {name}: ')} (log: {log})"
        )

    def _keep(self, kept: Kept, child: Child) -> None:
        """From now on it is restarted when it ends."""
        self._kept[kept.name] = kept
        keeper = asyncio.create_task(self._restart_for_ever(kept, child), name=f"keep {kept.name}")
        keeper.add_done_callback(self._look_at_end)
        self._keepers[kept.name] = keeper

    def _look_at_end(self, task: "asyncio.Task[None]") -> None:
        """An error of ours in a task that keeps or watches a process must not pass unseen."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failure.done():
            self.failure.set_result(error)

    async def _release(self, name: str) -> Child:
        """The process, no longer restarted when it ends."""
        keeper = self._keepers.pop(name)
        keeper.cancel()
        await asyncio.wait([keeper])
        return self.roster[name]

    async def _restart_for_ever(self, kept: Kept, child: Child) -> None:
        """Restarts one process for as long as the instance runs, later and later while it keeps crashing."""
        crashes = 0
        while True:
            started = time.monotonic()
            async with self._watched(kept, child):
                if crashes:
                    await self._until_back(kept, child)
                status = await child.ended()
            crashes = 0 if time.monotonic() - started > _STABLE_SECONDS else crashes
            pause = _BACKOFF[min(crashes, len(_BACKOFF) - 1)]
            crashes += 1
            self.roster.mark(kept.name, "restarting")
            reason = f"{kept.name} ended ({_cause(status)}): {child.last_line()}"
            self._say(f"{reason} - again in {pause:.0f} s")
            await child.stop(0)  # what it left of its group
            await asyncio.sleep(pause)
            try:
                child = await self.roster.spawn(kept.group, kept.spec)
            except CliError as error:
                self._say(
                    str(error)
                )  # its end is noticed again at once, and the next pause is longer

    async def _until_back(self, kept: Kept, child: Child) -> None:
        """Waits until a restarted process serves, has ended, or has had its time and is ended."""
        serves = await _in_time(kept.serves(child), kept.seconds)
        if serves:
            self.roster.mark(kept.name, "running")
            self._say(f"{kept.name} is back")
        elif child.status is None:
            self._say(f"{kept.name} is not ready after {kept.seconds:.0f} s: it is ended")
            child.kill()

    # ---- signs of life

    @contextlib.asynccontextmanager
    async def _watched(self, kept: Kept, child: Child) -> AsyncIterator[None]:
        """Ends the process if it freezes while the block runs, which is to wait for its end."""
        if self._frozen_seconds is None or not (kept.spec.beats or kept.answers):
            yield
            return
        silence = Silence(self._frozen_seconds, time.monotonic())
        tasks = [asyncio.create_task(self._end_if_frozen(kept.name, child, silence))]
        if kept.answers:
            tasks.append(asyncio.create_task(_ask(kept.answers, silence)))
        for task in tasks:
            task.add_done_callback(self._look_at_end)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_if_frozen(self, name: str, child: Child, silence: Silence) -> None:
        while not silence.is_frozen(time.monotonic()):
            await asyncio.sleep(liveness.LOOK_SECONDS)
            if child.last_sign is not None:
                silence.sign(child.last_sign)
        self._say(f"{name} gives no sign of life: it is ended")
        if child.spec.beats:
            child.send(WHERE_ARE_YOU)
            await asyncio.sleep(_LAST_WORDS_SECONDS)
        child.kill()


async def _ask(answers: Callable[[], Awaitable[bool]], silence: Silence) -> None:
    """Asks a process again and again whether it lives."""
    while True:
        if await answers():
            silence.sign(time.monotonic())
        await asyncio.sleep(ASK_SECONDS)


def first_error(group: BaseExceptionGroup) -> BaseException:
    """The first failure of a task group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


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
