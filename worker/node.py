"""A node: what it does with each control message, and what it tells others about itself.

`jobs.py` has the jobs at this node, `membership.py` its place in the tree, `engine_supervisor.py`
its engine's health; `life.py` starts, serves and ends it. Every method here runs on the event loop
and returns at once. `topology.dispatch` makes the decisions.
"""

import asyncio
import os
import socket
import time
import uuid
from typing import Literal

import msgspec

from broker.encoding import encode
from broker.job_messages import (
    AnyInboxMessage,
    JobReport,
    Question,
    ReportJobs,
)
from broker.join_messages import AnyJoinMessage, RegisterNode, RemoveNode
from broker.malformed import inconsistency
from broker.node_state import NodeState, NodeStatus
from broker.session import Delivery
from broker.tracing import NO_TRACER, Tracer
from broker.wire import (
    Adopt,
    Ancestors,
    AnyControl,
    Attach,
    Cancel,
    Capacity,
    Drain,
    Job,
    Leave,
    Ping,
    Refused,
    RemoveGone,
    Restart,
    Resume,
    ResumeGrant,
    Stop,
    Supersede,
    Task,
)
from topology.cap import AUTOMATIC, Cap
from topology.dispatch import Dispatcher, Policy
from topology.limits import MAX_JOINED_SLOTS
from topology.version import VERSION
from worker.announcer import Announcer
from worker.background import Background
from worker.broker_link import BrokerLink
from worker.counters import CounterReports
from worker.device_memory import DeviceMemory
from worker.engine_supervisor import EngineSupervisor
from worker.engines.base import Engine, Footprint
from worker.job_list import JobList
from worker.jobs import Jobs
from worker.membership import Membership
from worker.operator_requests import OperatorRequests
from worker.registrar import Registrar, believable
from worker.warnings import Warnings
from worker.watchdog import STEP_SECONDS

# How a node leaves that an operator asked to: to come back at once, or for good.
Departure = Literal["restart", "stop"]

NOTE_LETTERS = 2000  # of a text for people in a node's state


class NoEngine:
    """What a root shows in an engine's place."""

    name = "none"
    device = ""
    slots = 0
    context_length = 0
    warning = ""
    reuse = (0, 0)
    footprint = Footprint()
    tasks: tuple[Task, ...] = ()


class Node:
    """The state of one node and its reactions.

    `step_seconds`: an engine's step that takes longer hangs. `user_jobs`: jobs of one user that may
    run below a root at once; see topology.cap. `tree_engine`: of the nodes below a root.
    """

    def __init__(
        self,
        name: str,
        parent: str | None,
        model: str,
        policy: Policy,
        engine: Engine | None,
        *,
        step_seconds: float = STEP_SECONDS,
        user_jobs: int | None = AUTOMATIC,
        tree_engine: str = "",
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.name = name
        self.model = model
        self.engine = engine
        # the engine's slots are a guess until it has started
        self.dispatcher = Dispatcher(self._shown_engine.slots, policy)
        self.link = BrokerLink()
        self.background = Background(name)
        self.membership = Membership(
            name, parent, self.link, self.dispatcher, self.background, self._membership_changed
        )
        self.announcer = Announcer(self._send_counters, self._send_state, self._report_seconds)
        self.supervisor = EngineSupervisor(
            engine, step_seconds, self._health_changed, self._interrupt_all
        )
        tree_engine = engine.name if engine is not None else tree_engine
        self.registrar = Registrar(name, model, tree_engine, self.link)
        self._incarnation = uuid.uuid4().hex[:8]
        if parent is not None:  # only a root enforces the cap
            user_jobs = 0
        self.jobs = Jobs(
            name,
            model,
            self._incarnation,
            engine,
            self.link,
            self.dispatcher,
            self.membership,
            Cap(user_jobs, plans=parent is None),
            on_change=self.announcer.touch,
            on_engine_failure=self.supervisor.restart,
            tracer=tracer,
            joined=self.registrar.admitted,
        )
        self._counters = CounterReports(
            name,
            model,
            self._shown_engine.name,
            self._incarnation,
            self.jobs,
            self.dispatcher,
            self.membership,
        )
        self._job_list = JobList(name, model, self.jobs, self._publish_jobs)
        self._operator_requests = OperatorRequests(name, self.jobs, self._job_list, self.link)
        self.warnings = Warnings(name)
        self._memory = DeviceMemory()
        # resolved with the reason when the parent refuses this node
        self.refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # resolved when an operator has this node leave
        self.departure: asyncio.Future[Departure] = asyncio.get_running_loop().create_future()
        self.answered = asyncio.Event()  # the parent has admitted or refused this node
        self.served = False  # it has taken jobs once
        self.status: NodeStatus = "starting"
        self._drained = False
        self._leaving = False
        self._started = time.monotonic()
        self._sent_state: NodeState | None = None

    @property
    def parent(self) -> str | None:
        """The node above; None for a root."""
        return self.membership.parent

    @property
    def engine_name(self) -> str:
        """What the node runs its jobs with; a root has "none"."""
        return self._shown_engine.name

    @property
    def leaves_for_good(self) -> bool:
        """True if an operator removes this node from the tree."""
        return self.departure.done() and self.departure.result() == "stop"

    def leave(self) -> None:
        """Takes no more jobs, for good."""
        self._leaving = True
        self._decide_accepting()

    # ---- what arrives

    def on_job(self, job: Job, delivery: Delivery) -> None:
        self.jobs.add(job, delivery)
        self.announcer.touch()

    def on_returned_job(self, sender: str, job: Job, delivery: Delivery) -> None:
        known = self.jobs.given.take_back(sender, job)
        if known is None:
            reason = f"{sender} gave back more jobs than it can have had"
            self.link.port.reject(delivery, reason, job.reply_token)
        else:
            delivery.body = encode(known)
            self.on_job(known, delivery)

    def on_node_gone(self, name: str) -> None:
        self.membership.on_gone(name)
        self.announcer.touch()

    def on_reader_gone(self, queue: str) -> None:
        self.jobs.reader_gone(queue)
        self.announcer.touch()

    def on_ignored(self, sender: str, reason: str) -> None:
        self.warnings.add(sender or "unknown sender", f"a message from it was ignored: {reason}")
        self.announcer.touch()

    def on_control(self, message: AnyInboxMessage) -> None:
        if isinstance(message, ReportJobs | Question):
            self._operator_requests.on_message(message)
        else:
            self._on_tree_message(message)
        self.announcer.touch()

    def on_joined_message(self, sender: str, message: AnyInboxMessage) -> None:
        """A joined node speaks for itself alone, and commands nobody."""
        match message:
            case RegisterNode() | RemoveNode():
                self.background.run(self.registrar.on_request(sender, message))
            case Capacity() if message.node == sender:
                if sender in self.registrar.admitted:
                    self._on_joined_capacity(sender, message)
            case Leave() if message.node == sender:
                self.membership.on_leave(message)
                self.background.run(self.registrar.on_request(sender, message))
            case _:
                self.warnings.add(sender, "a message that it may not send was ignored")
        self.announcer.touch()

    def _on_joined_capacity(self, sender: str, message: Capacity) -> None:
        """Its counters, as far as they can be true."""
        if message.slots > MAX_JOINED_SLOTS:
            self.warnings.add(sender, f"it claims {message.slots} slots: {MAX_JOINED_SLOTS} count")
        users = self.jobs.given.possible_users(sender, message.users)
        self._on_capacity(msgspec.structs.replace(believable(message), users=users))

    def _on_tree_message(self, message: AnyControl | AnyJoinMessage) -> None:
        match message:
            case ResumeGrant():
                self.jobs.resume_requests.on_grant(message)
            case Capacity():
                self._on_capacity(message)
            case Leave():
                self.membership.on_leave(message)
            case Ancestors():
                self.membership.on_ancestors(message)
                self.answered.set()
            case Refused():
                self._on_refused(message)
            case Attach():
                self.membership.on_attach(message)
            case Adopt():
                self.membership.on_adopt(message)
            case RemoveGone():
                self.background.run(self.link.port.remove_gone(message.nodes))
            case Cancel():
                self.jobs.cancel(message)
            case Supersede():
                self.jobs.supersede(message)
            case Drain() | Resume() | Restart() | Stop():
                self._obey(message)
            case Ping():
                self.announcer.send_all()

    def _on_capacity(self, message: Capacity) -> None:
        """A child's counters replace the known ones if they are consistent."""
        reason = inconsistency(message)
        mismatch = self.registrar.mismatch(message)
        if mismatch:
            self.warnings.add(message.node, self.registrar.shown_mismatch(message))
            self.membership.refuse(message, mismatch)
        elif reason:
            self.warnings.add(message.node, f"its counters were ignored: {reason}")
        elif message.node != self.name:
            self.membership.on_capacity(message)

    def _on_refused(self, message: Refused) -> None:
        """The parent serves another model: a node moved there goes back, a new one ends."""
        if message.parent != self.parent:
            return
        self.warnings.add(message.parent, message.reason)
        if self.served:
            self.membership.on_refused()
        elif not self.refused.done():
            self.refused.set_result(message.reason)
        self.answered.set()

    def _obey(self, message: Drain | Resume | Restart | Stop) -> None:
        """What operators have the whole node do."""
        match message:
            case Drain():
                self._drain(True)
            case Resume():
                self._drain(False)
            case Restart():
                self._depart("restart")
            case Stop():
                self._depart("stop")

    def _depart(self, departure: Departure) -> None:
        if not self.departure.done():
            self.departure.set_result(departure)

    # ---- whether it takes jobs

    def _drain(self, drained: bool) -> None:
        self._drained = drained
        self._decide_accepting()

    def _health_changed(self) -> None:
        if self.engine is not None and self.supervisor.ready:
            # Before this no job starts and no slot is reported as free. After a restart there may
            # be fewer slots than jobs that wait to resume: those keep their slots, and no slot is
            # free until enough of them have ended.
            self.dispatcher.set_slots(self.engine.slots)
        self.jobs.engine_ready(self.supervisor.ready)
        self._decide_accepting()

    def _membership_changed(self) -> None:
        self._decide_accepting()
        self.announcer.touch()

    def _decide_accepting(self) -> None:
        """A node whose engine failed still forwards jobs to its children, if it has any."""
        useful = self.supervisor.ready or bool(self.dispatcher.children)
        accepting = useful and not self._drained and not self._leaving
        changed = self.dispatcher.set_accepting(accepting)
        self.jobs.pump()
        if changed and self.status == "idle":
            self.announcer.send_all()

    def _interrupt_all(self, reason: str) -> None:
        self.jobs.interrupt_all(reason, fault=True)

    # ---- what it reports

    def _send_counters(self, always: bool) -> None:
        self.jobs.waiting.observe()
        self._count_slots()
        if self.status in ("starting", "idle") and self.parent is not None:
            self._counters.send(self.parent, always, serving=self.status == "idle")

    def _count_slots(self) -> None:
        """Large jobs may leave an engine room for fewer than it has slots."""
        if self.engine is None or not self.supervisor.ready:
            return
        before = self.dispatcher.slots
        self.dispatcher.set_slots(self.engine.usable_slots)
        if self.dispatcher.slots > before:
            self.jobs.pump()

    def _report_seconds(self) -> float:
        return self._counters.pause()

    def _send_state(self, always: bool) -> None:
        state = self.state()
        timeless = msgspec.structs.replace(
            state, started=0.0, sent=0.0, oldest_wait=0.0, memory=0, memory_free=0
        )
        if always or timeless != self._sent_state:
            self._sent_state = timeless
            self.link.port.publish_state(state)

    def state(self) -> NodeState:
        """This node as dashboards see it."""
        engine = self._shown_engine
        prompt_tokens, reused_tokens = engine.reuse
        memory = self._memory.of(engine.device)
        footprint = engine.footprint
        now = time.time()  # for people; readers convert it to their own clocks
        return NodeState(
            name=self.name,
            parent=self.parent,
            children=tuple(child.name for child in self.dispatcher.children),
            model=self.model,
            engine=engine.name,
            device=engine.device,
            policy=self.dispatcher.policy.name,
            status=self._shown_status(),
            slots=self.dispatcher.slots,
            running=self.dispatcher.running,
            held=len(self.jobs.waiting),
            received=self.dispatcher.received,
            finished=self.dispatcher.finished,
            tokens=self.jobs.tokens + self.jobs.running.tokens(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=now - (time.monotonic() - self._started),
            sent=now,
            detail=(self.supervisor.detail or self.supervisor.loading.text)[:NOTE_LETTERS],
            waited=self.jobs.waiting.accuracy.mean_wait,
            prompt_tokens=prompt_tokens,
            reused_tokens=reused_tokens,
            wait_error=self.jobs.waiting.accuracy.mean_error,
            context_length=engine.context_length,
            warning=self._warning(),
            failed=self.jobs.failed,
            oldest_wait=round(self.jobs.waiting.oldest_wait(), 2),
            memory=memory.taken,
            memory_total=memory.total,
            memory_free=memory.free,
            precision=footprint.precision,
            weights=footprint.weights,
            cache=footprint.cache,
            joined=self.link.joined,
            tasks=engine.tasks,
            version=VERSION,
            loaded=self.supervisor.loading.fraction,
        )

    def _publish_jobs(self, report: JobReport) -> None:
        self.link.port.publish_jobs(report)

    def _warning(self) -> str:
        warnings = [self._shown_engine.warning, self.warnings.text()]
        return "; ".join(filter(None, warnings))[:NOTE_LETTERS]

    @property
    def _shown_engine(self) -> "Engine | NoEngine":
        return self.engine or NoEngine()

    def _shown_status(self) -> NodeStatus:
        if self.status != "idle":
            return self.status
        if self.supervisor.failed:
            return "failed"
        if not self.dispatcher.accepting:
            if self.jobs.busy:
                return "draining"
            return "drained"
        if 0 < self.dispatcher.slots <= self.dispatcher.running:
            return "busy"
        return "idle"

    # ---- the end of a session

    async def abandon(self) -> None:
        """Ends every run without a final frame and forgets what came with the session.

        The broker delivers all jobs again.
        """
        await self.jobs.forget()
        await self.background.end()
        self.announcer.stop()
        self._job_list.stop()
        self.membership.forget()
        self.registrar.admitted.clear()
