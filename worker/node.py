"""A node: what it does with each job and each control message. `life.py` starts, serves and ends it; `relatives.py`
keeps its place in the tree, `announcer.py` tells others of it.

Every method here runs on the event loop and returns at once; the broker is reached through `NodePort`, the decisions
are `topology.dispatch`'s. A delivery is acknowledged when its job was handed on (confirmed) or ended (final frame
confirmed), so a job whose node dies is delivered again.
"""

import asyncio
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog

from broker.node import NodePort
from broker.session import Delivery
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
from topology.dispatch import Dispatcher, Forward, Hold, Policy, Run
from worker.announcer import Announcer
from worker.background import Background
from worker.engines.base import Engine
from worker.relatives import Relatives
from worker.run import JobRun

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
        self.model = model
        self.engine = engine
        self.dispatcher = Dispatcher(engine.slots if engine else 0, policy)
        self.background = Background(name)
        self.relatives = Relatives(name, parent, self.dispatcher, self.background, self._relatives_changed)
        self.announcer = Announcer(self._tell_counters, self._tell_state, policy.report_seconds)
        self.status: NodeStatus = "starting"
        self.settled = asyncio.Event()  # set whenever a job leaves this node
        self._port: NodePort
        self._started = time.time()
        self._tokens = 0
        self._held: deque[HeldJob] = deque()
        self._runs: dict[str, _Running] = {}
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._handed = 0  # jobs on their way to another node, not confirmed yet

    @property
    def parent(self) -> str | None:
        """The node above; None for a root."""
        return self.relatives.parent

    @property
    def port(self) -> NodePort:
        """The broker, for this session."""
        return self._port

    @port.setter
    def port(self, port: NodePort) -> None:
        self._port = self.relatives.port = port

    # ---- jobs

    def on_job(self, job: Job, delivery: Delivery) -> None:
        if delivery.redelivered:
            self._start_over(job, delivery)
            return
        self.dispatcher.received += 1
        self._held.append(HeldJob(job, delivery))
        self.pump()
        self.announcer.touch()

    def pump(self) -> None:
        """Places held jobs, oldest first, until one has to stay."""
        while self._held:
            held = self._held[0]
            if not self._wanted(held):
                self._held.popleft()
                continue
            if not self.dispatcher.accepting and self.relatives.parent_there:
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
            self.announcer.touch()

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
            self.relatives.parent_there = False
            self._held.append(held)

        self._hand_over(self.port.hand_up(self.parent or "", held.job), held, gone)

    def _start_over(self, job: Job, delivery: Delivery) -> None:
        """A job whose node died: it enters this node's queue again as a new attempt, so that every attempt counts."""
        again = HeldJob(msgspec.structs.replace(job, attempt=job.attempt + 1, seq=0), delivery)
        outcome = self.port.hand_up(self.name, again.job)
        self._hand_over(outcome, again, lambda: self._held.append(again))

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
            self.announcer.touch()

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
                self.relatives.on_capacity(message)
            case Leave():
                self.relatives.on_leave(message)
            case Ancestors():
                self.relatives.on_ancestors(message)
            case Attach():
                self.relatives.on_attach(message)
            case Cancel(request_id=request_id):
                self._cancel(request_id)
            case Drain():
                self._accept(False)
            case Resume():
                self._accept(True)
            case Ping():
                self.announcer.tell_all()
        self.announcer.touch()

    def on_node_gone(self, name: str) -> None:
        self.relatives.on_gone(name)
        self.announcer.touch()

    def on_reader_gone(self, queue: str) -> None:
        """An API process ended: nobody waits for its jobs."""
        for each in self._runs.values():
            if each.held.job.reply_to == queue:
                each.run.cancel()
        orphans = [held for held in self._held if held.job.reply_to == queue]
        self._held = deque(held for held in self._held if held.job.reply_to != queue)
        for held in orphans:
            self._settle(held.delivery)
        self.announcer.touch()

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

    # ---- what others learn of this node

    def _relatives_changed(self) -> None:
        self.pump()
        self.announcer.touch()

    def _tell_counters(self) -> None:
        if self.status == "idle":
            capacity = Capacity(
                node=self.name,
                slots=self.dispatcher.subtree_slots(),
                free=self.dispatcher.subtree_free(),
                received=self.dispatcher.received,
                finished=self.dispatcher.finished,
                accepting=self.dispatcher.accepting,
            )
            self.relatives.hello(capacity)

    def _tell_state(self) -> None:
        self.port.publish_state(self.state())

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
        )

    def _shown_status(self) -> NodeStatus:
        if self.status != "idle":
            return self.status
        if not self.dispatcher.accepting:
            return "draining" if self.busy() else "drained"
        full = self.dispatcher.slots > 0 and self.dispatcher.running >= self.dispatcher.slots
        return "busy" if full else "idle"

    # ---- the end of a session

    async def give_up_runs(self) -> None:
        """Jobs that still run when the node must go start over elsewhere."""
        running = list(self._runs.values())
        for each in running:
            each.task.cancel()
        await asyncio.gather(*(each.task for each in running), return_exceptions=True)
        for each in running:
            if self.relatives.parent_there:  # else the delivery goes back to this node's queue with the session
                job = msgspec.structs.replace(each.held.job, attempt=each.held.job.attempt + 1, seq=0)
                self._hand_up(HeldJob(job, each.held.delivery))

    async def abandon(self) -> None:
        """Ends every run without a final frame and forgets all that came with the session; the broker delivers
        all of it again.
        """
        runs = [each.task for each in self._runs.values()]
        for task in runs:
            task.cancel()
        self._held.clear()
        await asyncio.gather(*runs, return_exceptions=True)
        await self.background.end()
        self.announcer.stop()
        self.relatives.forget()


def _number(job: Job) -> FrameNumber:
    """Identity of the next frame of a job that is not running."""
    return {"request_id": job.request_id, "attempt": job.attempt, "seq": job.seq}
