"""Conducts drills: has a node's process killed, follows what becomes of its jobs, stores that."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from django.db import DatabaseError

from api.errors import ApiError
from api.operate.audit.models import AuditEntry
from api.operate.audit.store import finish
from api.operate.drills import plan as plans
from api.operate.drills import store
from api.operate.drills.models import Drill, State
from api.operate.drills.plan import Plan
from api.operate.hosts.hosts import Hosts
from api.tree.watch import TreeWatch
from broker import tree_actions
from broker.client import Client
from broker.drill_messages import DrillCounts
from broker.errors import NoSuchNode, Unavailable
from broker.host_messages import KillNode
from broker.host_watch import new_number
from broker.job_messages import MAX_LISTED, FindJobs, JobReport
from topology import names

LOOK_EVERY = 0.25  # seconds between two looks at the counts
STORE_EVERY = 1.0  # seconds between two signs of life
BROKE_OFF = "it broke off: the API's log says why"

log = structlog.get_logger("canopy.api")


@dataclass(frozen=True, slots=True)
class _Order:
    """What somebody has asked for. `seconds`: the longest that it may last."""

    by: str
    name: str
    seconds: float
    entry: AuditEntry


class Conductor:
    """Owns this process's drills, which outlive their requests."""

    def __init__(self, client: Client, tree: TreeWatch, hosts: Hosts) -> None:
        self._client = client
        self._tree = tree
        self._hosts = hosts
        self._tasks: set[asyncio.Task[None]] = set()  # one drill, and others about to be refused

    async def plan(self, name: str) -> Plan:
        """What a drill would do now. Raises ApiError 404 or 503."""
        node = await self._find(name)
        report = None
        if node["state"] != "down":
            report = await self._jobs_of(name)
        return plans.plan(node, self._hosts.states().values(), report)

    async def start(self, by: str, name: str, seconds: float, entry: AuditEntry) -> Drill:
        """Returns when the node is killed, or about to be; `seconds`: how long it may last.

        Raises ApiError 404, 409 or 503, and then nothing was killed. All of it happens in the
        background, also if the caller leaves, and `entry` gets the result, or the refusal.
        """
        begun: asyncio.Future[Drill] = asyncio.get_running_loop().create_future()
        order = _Order(by, name, seconds, entry)
        task = asyncio.create_task(self._conduct(order, begun), name="drill")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await begun

    async def settled(self, on_look: Callable[[DrillCounts, float], None]) -> None:
        """Returns at the drill's end. `on_look`: called with the counts and the seconds so far."""
        began = time.monotonic()
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=LOOK_EVERY)
            on_look(self._client.drills.sums(), time.monotonic() - began)

    async def stop(self) -> None:
        """Ends the drill: its result stays unknown."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _conduct(self, order: _Order, begun: "asyncio.Future[Drill]") -> None:
        failure: Exception | None = None
        try:
            result = await self._hold(order, begun)
        except ApiError as error:
            result, failure = error.message, error
        except asyncio.CancelledError:
            await finish(order.entry, store.INTERRUPTED)
            begun.cancel()
            raise
        except Exception as error:  # fate: whoever waits gets it; the audit log and ours have it
            log.error("a drill broke off", node=order.name, exc_info=error)
            result, failure = BROKE_OFF, error
        try:
            await finish(order.entry, result)
        except DatabaseError as error:  # fate: the entry stays as it is
            log.error("a drill's result is not in the audit log", node=order.name, exc_info=error)
        if failure is not None and not begun.done():
            begun.set_exception(failure)

    async def _hold(self, order: _Order, begun: "asyncio.Future[Drill]") -> str:
        """The whole drill; returns its result. Raises ApiError, also after `begun` has its drill.

        Whatever happens, nobody counts afterwards, and the drill is stored as ended.
        """
        plan = await self.plan(order.name)
        if plan.refusal:
            raise ApiError(409, plan.refusal, field="node", code="refused")
        pid = (await self._find(order.name))["pid"]
        try:
            drill = await store.begin(order.by, order.name, plan.host)
        except store.DrillRuns as error:
            message = "another drill is running: wait for its end"
            raise ApiError(409, message, code="refused") from error
        try:
            try:
                counts = await self._kill_and_follow(drill, pid, order, begun)
            finally:
                self._client.drills.end()  # before the row: then the next drill may begin
        except BaseException as error:
            await store.finish(drill, State.FAILED, _note(error))
            raise
        await store.finish(drill, State.DONE)
        log.info("drill ended", node=drill.node, affected=counts.affected, lost=counts.lost)
        return plans.sentence(counts, drill.back)

    async def _kill_and_follow(
        self, drill: Drill, pid: int, order: _Order, begun: "asyncio.Future[Drill]"
    ) -> DrillCounts:
        """Returns the final counts. Raises ApiError, and then the node lives."""
        killed_at = await self._announce(drill.node)
        await finish(order.entry, "goes on")
        unanswered = await self._kill(drill)
        if not begun.done():  # else whoever asked has left
            begun.set_result(drill)
        back = asyncio.create_task(self._until_back(drill.node, pid, killed_at), name="drill")
        try:
            counts = await self._until_over(drill, back, killed_at, order.seconds)
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
        if unanswered is not None and drill.back is None and await self._lives(drill.node, pid):
            message = f"{drill.node} was not killed: {unanswered.message}"
            raise ApiError(503, message, code="unavailable") from unanswered
        return counts

    async def _find(self, name: str) -> Mapping[str, Any]:
        """Raises ApiError 404."""
        try:
            return tree_actions.find(await self._tree.now(), name)
        except NoSuchNode as error:
            raise ApiError(404, str(error), field="node", code="not_found") from error

    async def _lives(self, name: str, pid: int) -> bool:
        """Whether that process of the node is still there."""
        try:
            node = await self._find(name)
        except ApiError:
            return False
        return node["state"] != "down" and node["pid"] == pid

    async def _jobs_of(self, name: str) -> JobReport | None:
        question = FindJobs(number="", reply_to="", limit=MAX_LISTED)
        try:
            answers = await self._client.job_watch.ask(question)
        except Unavailable as error:
            raise ApiError(503, str(error), code="unavailable") from error
        for answer in answers:
            if answer.node == name:
                return answer.report
        return None

    async def _announce(self, name: str) -> float:
        """Has all processes count, from the time returned on (monotonic clock). Raises ApiError."""
        drills = self._client.drills
        try:
            await drills.prepare(uuid.uuid4().hex, name, self._processes())
        except Unavailable as error:
            message = f"nothing was killed: {error}"
            raise ApiError(503, message, code="unavailable") from error
        report = await self._jobs_of(name)
        running, waiting = [], []
        if report is not None:
            running = [job.request_id for job in report.running]
            waiting = [job.request_id for job in report.waiting]
        drills.killed(running, waiting)
        return time.monotonic()

    async def _kill(self, drill: Drill) -> ApiError | None:
        """Has the agent kill the node. Raises ApiError if it refuses.

        Returns the error of an agent that does not answer in time: it may kill the node all the
        same.
        """
        try:
            await self._hosts.request(drill.host, KillNode(number=new_number(), node=drill.node))
        except ApiError as error:
            if error.code != "unavailable":
                raise
            return error
        return None

    def _processes(self) -> list[str]:
        """The API processes that the recorder has seen."""
        overview = self._client.reports.latest
        queues = overview.queues if overview is not None else ()
        watchers = [names.drills_watcher(queue.name) for queue in queues]
        return [process for process in watchers if process is not None]

    async def _until_over(
        self, drill: Drill, back: "asyncio.Task[float]", killed_at: float, seconds: float
    ) -> DrillCounts:
        """The final counts; what is open at the deadline is lost."""
        drills = self._client.drills
        stored_at = float("-inf")
        while True:
            counts = drills.sums()
            returned = back.result() if back.done() else None
            now = time.monotonic()
            over = plans.is_over(counts, returned, now - killed_at)
            if not over and now - killed_at >= seconds:
                over = True
                counts = msgspec.structs.replace(counts, lost=counts.lost + counts.open, open=0)
            if over or now - stored_at >= STORE_EVERY:
                stored_at = now
                lost = counts.lost + counts.waiting_lost
                counts = msgspec.structs.replace(counts, lost=lost)
                await store.note(drill, counts, drills.processes, returned)
            if over:
                return counts
            await asyncio.sleep(LOOK_EVERY)

    async def _until_back(self, name: str, pid: int, killed_at: float) -> float:
        """Seconds from the kill until the tree shows that another process serves."""
        async with aclosing(self._tree.follow()) as trees:
            async for tree in trees:
                if plans.came_back(tree["nodes"], name, pid):
                    return round(time.monotonic() - killed_at, 2)
        raise RuntimeError("the tree's stream ended")


def _note(error: BaseException) -> str:
    """Why a drill has no result."""
    if isinstance(error, ApiError):
        return error.message
    if isinstance(error, asyncio.CancelledError):
        return store.INTERRUPTED
    return BROKE_OFF
