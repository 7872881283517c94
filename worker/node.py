"""A node: what it does with each job and each control message. `life.py` starts, serves and ends it.

Every method here runs on the event loop and returns at once; the broker is reached through `NodePort`, the decisions
are `topology.dispatch`'s. A delivery is acknowledged when its job was handed on (confirmed) or ended (final frame
confirmed), so a job whose node dies is delivered again.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import msgspec
import structlog

from broker.node import NodePort, NoParent
from broker.session import Delivery, NotFound
from broker.wire import (
    Ancestors,
    AnyControl,
    AnyFrame,
    Attach,
    Cancel,
    Capacity,
    Drain,
    Failed,
    Finished,
    FrameNumber,
    Job,
    Leave,
    NodeState,
    NodeStatus,
    Ping,
    Resume,
    Waiting,
)
from topology.dispatch import Child, Dispatcher, Forward, Hold, Policy, Run
from worker.engines.base import Engine
from worker.run import JobRun

COALESCE_SECONDS = 0.05  # the parent is told the counters at most this often
STATE_SECONDS = 0.25  # and dashboards the state
CANCELLED_KEPT = 10_000  # cancels remembered for jobs that have not arrived yet

log = structlog.get_logger()


@dataclass(slots=True)
class HeldJob:
    """A job in this node's hands, with the delivery that must be settled in the end."""

    job: Job
    delivery: Delivery
    told: str = ""  # the reason for waiting that its reader knows


@dataclass(slots=True)
class _Running:
    held: HeldJob
    run: JobRun
    task: asyncio.Task[None]


class Node:
    """The state of one node and its reactions."""

    def __init__(self, name: str, parent: str | None, model: str, policy: Policy, engine: Engine | None) -> None:
        self.name = name
        self.parent = parent
        self.home = parent  # where it belongs; `parent` differs while that node is away
        self.model = model
        self.engine = engine
        self.dispatcher = Dispatcher(engine.slots if engine else 0, policy)
        self.port: NodePort
        self.status: NodeStatus = "starting"
        self.detail = ""
        self.settled = asyncio.Event()  # set whenever a job leaves this node
        self._started = time.time()
        self._tokens = 0
        self._held: deque[HeldJob] = deque()
        self._runs: dict[str, _Running] = {}
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._parent_there = parent is not None  # as far as the last attempt to reach it told
        self._above: tuple[str, ...] = ()  # the parent's ancestors, nearest first
        self._handed = 0  # jobs on their way to another node, not confirmed yet
        self._adopted: set[str] = set()  # dead children whose queues this node empties
        self._cleanups: set[asyncio.Task[object]] = set()
        self._beat_timer: asyncio.TimerHandle | None = None
        self._state_timer: asyncio.TimerHandle | None = None
        self._state_told = 0.0

    # ---- jobs

    def on_job(self, job: Job, delivery: Delivery) -> None:
        if delivery.redelivered:
            self._start_over(job, delivery)
            return
        self.dispatcher.received += 1
        self._held.append(HeldJob(job, delivery))
        self.pump()
        self.touch()

    def pump(self) -> None:
        """Places held jobs, oldest first, until one has to stay."""
        while self._held:
            held = self._held[0]
            if not self._wanted(held):
                self._held.popleft()
                continue
            if not self.dispatcher.accepting and self._parent_there:
                self._held.popleft()
                self._hand_up(held)
                continue
            match self.dispatcher.decide():
                case Run():
                    self._held.popleft()
                    self._run(held)
                case Forward(child):
                    self._held.popleft()
                    self._forward(held, child)
                case Hold(reason):
                    self._tell_waiting(reason)
                    return

    def busy(self) -> bool:
        """True while a job is in this node's hands."""
        return bool(self._held or self._runs or self._handed)

    def _wanted(self, held: HeldJob) -> bool:
        """False for a job nobody waits for: it is settled here."""
        if held.job.request_id in self._cancelled:
            del self._cancelled[held.job.request_id]
            self._end(held, Finished(**_number(held.job), reason="cancelled"))
            return False
        if held.job.deadline is not None and held.job.deadline < time.time():
            message = "the deadline of the request passed while it waited"
            self._end(held, Failed(**_number(held.job), code="expired", message=message))
            return False
        return True

    def _run(self, held: HeldJob) -> None:
        if self.engine is None:
            raise RuntimeError("a root has no slots, so the rule never says Run")
        self.dispatcher.running += 1
        run = JobRun(self.engine, held.job, self.name, lambda frame: self.port.outbox.put(held.job.reply_to, frame))
        task = asyncio.create_task(self._run_to_end(held, run), name=f"run {held.job.request_id}")
        self._runs[held.job.request_id] = _Running(held, run, task)

    async def _run_to_end(self, held: HeldJob, run: JobRun) -> None:
        try:
            final = await run.run()
            self._end(held, final)
        finally:
            self.dispatcher.running -= 1
            self.dispatcher.finished += 1
            self._tokens += run.tokens
            self._runs.pop(held.job.request_id, None)
            self.pump()
            self.touch()

    def _end(self, held: HeldJob, final: AnyFrame) -> None:
        """Sends the last frame; the delivery is acknowledged once the broker has it, or nobody reads it."""
        self.port.outbox.put(held.job.reply_to, final, sent=lambda _read: self._settle(held.delivery))

    def _forward(self, held: HeldJob, child: str) -> None:
        self.dispatcher.forwarded(child)

        def gone() -> None:
            log.info("a child's edge is gone", node=self.name, child=child)
            self.dispatcher.remove_child(child)
            self._held.appendleft(held)

        job = msgspec.structs.replace(held.job, trail=(*held.job.trail, self.name))
        self._hand_over(self.port.forward(child, job), held, gone)

    def _hand_up(self, held: HeldJob) -> None:
        """A node that drains gives its jobs back to its parent."""

        def gone() -> None:
            self._parent_there = False
            self._held.append(held)

        self._hand_over(self.port.hand_up(self.parent or "", held.job), held, gone)

    def _start_over(self, job: Job, delivery: Delivery) -> None:
        """A job whose node died: it enters this node's queue again as a new attempt, so that every attempt counts."""
        again = msgspec.structs.replace(job, attempt=job.attempt + 1, seq=0)
        self._hand_over(self.port.hand_up(self.name, again), HeldJob(job, delivery), lambda: None)

    def _hand_over(self, outcome: asyncio.Future[bool], held: HeldJob, gone: Callable[[], None]) -> None:
        """Acknowledges `held` once the broker has confirmed where it went; `gone()` if it went nowhere."""
        self._handed += 1

        def confirmed(outcome: asyncio.Future[bool]) -> None:
            self._handed -= 1
            if outcome.cancelled() or outcome.exception() is not None:
                return  # the session is lost: the job is delivered again
            if outcome.result():
                self._settle(held.delivery)
            else:
                gone()
                self.pump()
            self.touch()

        outcome.add_done_callback(confirmed)

    def _settle(self, delivery: Delivery) -> None:
        delivery.ack()
        self.settled.set()

    def _tell_waiting(self, reason: str) -> None:
        """Lets the readers of held jobs know why nothing happens yet, once a reason."""
        for held in self._held:
            if held.told != reason:
                held.told = reason
                frame = Waiting(**_number(held.job), node=self.name, reason=reason)
                held.job = msgspec.structs.replace(held.job, seq=held.job.seq + 1)
                self.port.outbox.put(held.job.reply_to, frame)

    # ---- control

    def on_control(self, message: AnyControl) -> None:
        match message:
            case Capacity():
                self._on_capacity(message)
            case Cancel(request_id=request_id):
                self._cancel(request_id)
            case Drain():
                self._accept(False)
            case Resume():
                self._accept(True)
            case Leave(node=child):
                self.dispatcher.remove_child(child)
            case Attach(parent=parent, for_good=for_good):
                self.home = parent if for_good else self.home
                self._own(self._move(parent))
            case Ancestors(names=names):
                self._above = names
            case Ping():
                self.publish()
        self.touch()

    def on_node_gone(self, name: str) -> None:
        """A child died: nothing more is sent to it, and its queue is emptied from here. The parent died: the nearest
        living ancestor takes its place until it is back.
        """
        if name == self.parent:
            self._parent_there = False
            self._own(self._find_parent())
        if self.dispatcher.child(name) is None:
            return
        log.warning("child is gone; taking over its queue", node=self.name, child=name)
        self.dispatcher.remove_child(name)
        self._adopted.add(name)
        self._own(self._adopt(name))
        self.touch()

    def on_reader_gone(self, queue: str) -> None:
        """An API process ended: nobody waits for its jobs."""
        for each in self._runs.values():
            if each.held.job.reply_to == queue:
                each.run.cancel()
        orphans = [held for held in self._held if held.job.reply_to == queue]
        self._held = deque(held for held in self._held if held.job.reply_to != queue)
        for held in orphans:
            self._settle(held.delivery)
        self.touch()

    def _on_capacity(self, told: Capacity) -> None:
        child = Child(told.node, told.slots, told.received, told.finished, told.accepting)
        if told.node in self._adopted:
            self._adopted.discard(told.node)
            self._own(self.port.stop_serving(told.node))
        if self.dispatcher.child(told.node) is None:
            self._tell_ancestors(told.node)
        self.dispatcher.put_child(child)
        self.pump()

    def _cancel(self, request_id: str) -> None:
        """The job may run here, be held here, or arrive later; elsewhere it is not ours to find."""
        if request_id in self._runs:
            self._runs[request_id].run.cancel()
            return
        self._cancelled[request_id] = None
        while len(self._cancelled) > CANCELLED_KEPT:
            self._cancelled.popitem(last=False)
        if any(held.job.request_id == request_id for held in self._held):
            self._held = deque(held for held in self._held if self._wanted(held))

    def _accept(self, accepting: bool) -> None:
        self.dispatcher.accepting = accepting
        self.pump()

    async def _move(self, parent: str) -> None:
        """Hangs this node below another parent; the old edge goes only once the new one stands."""
        await self.port.hang_below(parent)
        old, self.parent = self.parent, parent
        self.publish()
        if old is not None and old != parent:
            await self.port.unhang(old)
            await self.port.tell(old, Leave(node=self.name))

    async def _find_parent(self) -> None:
        """Hangs below the nearest living ancestor. With none alive it stays: the parent may come back."""
        for ancestor in self._above:
            if await self.port.is_present(ancestor):
                log.warning("the parent is gone; hanging below an ancestor", node=self.name, parent=ancestor)
                await self._move(ancestor)
                return

    async def go_home(self) -> None:
        """Back below the node it belongs below, once that is there again (and not below this one)."""
        if self.home is None or self.home == self.parent or self.dispatcher.child(self.home) is not None:
            return
        if await self.port.is_present(self.home):
            await self._move(self.home)

    async def keep_edge(self) -> None:
        """Makes the edge again: whatever removed it, the next beat heals it."""
        if self.parent is not None:
            with contextlib.suppress(NoParent):
                await self.port.hang_below(self.parent)

    async def _adopt(self, child: str) -> None:
        """Removes the edge to a dead child and takes its jobs as if they had come to this node."""
        try:
            await self.port.cut_off(child)
            await self.port.serve(child, prefetch=self.window())
        except NotFound:  # it removed the queue itself
            self._adopted.discard(child)

    async def bury_adopted(self) -> None:
        """Deletes the queues of dead children that are empty by now."""
        for child in list(self._adopted):
            if await self.port.remove(child):
                self._adopted.discard(child)

    # ---- what others learn of this node

    def touch(self) -> None:
        """Something changed: publish soon."""
        if self._beat_timer is None:
            self._beat_timer = asyncio.get_running_loop().call_later(COALESCE_SECONDS, self._beat)

    def tell_ancestors(self) -> None:
        """Lets every child know where to go if this node dies."""
        for child in self.dispatcher.children:
            self._tell_ancestors(child.name)

    def _tell_ancestors(self, child: str) -> None:
        above = () if self.parent is None else (self.parent, *self._above)
        self.port.tell(child, Ancestors(names=above))

    def publish(self) -> None:
        """Tells the parent the counters and everybody the state, now."""
        self._tell_parent()
        self._publish_state()

    def _tell_parent(self) -> None:
        if self.parent is not None and self.status == "idle":
            capacity = Capacity(
                node=self.name,
                slots=self.dispatcher.subtree_slots(),
                received=self.dispatcher.received,
                finished=self.dispatcher.finished,
                accepting=self.dispatcher.accepting,
            )
            self._hello(self.parent, capacity)

    def _hello(self, parent: str, capacity: Capacity) -> None:
        """The counters are also how a parent learns that it has this child, and this node that its parent is back."""

        def told(outcome: asyncio.Future[bool]) -> None:
            if outcome.cancelled() or outcome.exception() is not None or parent != self.parent:
                return
            was_there, self._parent_there = self._parent_there, outcome.result()
            if self._parent_there and not was_there:  # a parent that was away may have lost the edge
                self._own(self.port.hang_below(parent))

        self.port.tell(parent, capacity).add_done_callback(told)

    def state(self) -> NodeState:
        """This node as dashboards see it."""
        return NodeState(
            name=self.name,
            parent=self.parent,
            children=tuple(child.name for child in self.dispatcher.children),
            model=self.model,
            engine=self.engine.name if self.engine else "none",
            device=self.engine.device if self.engine else "",
            policy=self.dispatcher.policy.name,
            status=self._shown_status(),
            slots=self.dispatcher.slots,
            running=self.dispatcher.running,
            held=len(self._held),
            received=self.dispatcher.received,
            finished=self.dispatcher.finished,
            tokens=self._tokens + sum(each.run.tokens for each in self._runs.values()),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            sent=time.time(),
            detail=self.detail,
        )

    def window(self) -> int:
        """How many jobs are taken from a queue before the first is settled: enough to fill every slot and to keep
        forwards pipelined, few enough that the backlog stays in the broker.
        """
        return self.dispatcher.slots + 256

    def _shown_status(self) -> NodeStatus:
        if self.status != "idle":
            return self.status
        if not self.dispatcher.accepting:
            return "draining" if self.busy() else "drained"
        full = self.dispatcher.slots > 0 and self.dispatcher.running >= self.dispatcher.slots
        return "busy" if full else "idle"

    def _publish_state(self) -> None:
        self._state_told = time.monotonic()
        self.port.publish_state(self.state())

    def _beat(self) -> None:
        self._beat_timer = None
        self._tell_parent()
        if time.monotonic() - self._state_told >= STATE_SECONDS:
            self._publish_state()
        elif self._state_timer is None:
            self._state_timer = asyncio.get_running_loop().call_later(STATE_SECONDS, self._late_state)

    def _late_state(self) -> None:
        self._state_timer = None
        self._publish_state()

    # ---- the end of a session

    async def give_up_runs(self) -> None:
        """Jobs that still run when the node must go start over elsewhere."""
        running = list(self._runs.values())
        for each in running:
            each.task.cancel()
        await asyncio.gather(*(each.task for each in running), return_exceptions=True)
        for each in running:
            if self._parent_there:  # else the delivery goes back to this node's queue with the session
                job = msgspec.structs.replace(each.held.job, attempt=each.held.job.attempt + 1, seq=0)
                self._hand_up(HeldJob(job, each.held.delivery))

    async def abandon(self) -> None:
        """Ends every run without a final frame and forgets all that came with the session; the broker delivers
        all of it again.
        """
        tasks = [*(each.task for each in self._runs.values()), *self._cleanups]
        self._held.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for timer in (self._beat_timer, self._state_timer):
            if timer is not None:
                timer.cancel()
        self._beat_timer = self._state_timer = None
        self._adopted.clear()
        self._handed = 0
        for child in self.dispatcher.children:
            self.dispatcher.remove_child(child.name)

    def _own(self, work: Coroutine[None, None, object]) -> None:
        """Runs a short broker operation that nobody waits for; it ends with the session at the latest."""
        task: asyncio.Task[object] = asyncio.create_task(work)
        self._cleanups.add(task)

        def ended(task: asyncio.Task[object]) -> None:
            self._cleanups.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("broker operation failed", node=self.name, reason=str(error))

        task.add_done_callback(ended)


def _number(job: Job) -> FrameNumber:
    """Identity of the next frame of a job that is not running."""
    return {"request_id": job.request_id, "attempt": job.attempt, "seq": job.seq}
