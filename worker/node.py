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
from collections import Counter

import msgspec

from broker.malformed import inconsistency
from broker.session import Delivery
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
    NodeState,
    NodeStatus,
    Ping,
    Refused,
    Resume,
    ResumeGrant,
    Supersede,
)
from topology.cap import AUTOMATIC, Cap
from topology.dispatch import Dispatcher, Policy
from worker.announcer import Announcer
from worker.background import Background
from worker.broker_link import BrokerLink
from worker.engine_supervisor import EngineSupervisor
from worker.engines.base import Engine
from worker.jobs import Jobs
from worker.membership import Membership
from worker.warnings import Warnings
from worker.watchdog import STEP_SECONDS

NOTE_LETTERS = 2000  # of a text for people in a node's state
MAX_USERS = 10_000  # reported to the parent: those with most jobs


class Node:
    """The state of one node and its reactions.

    `step_seconds`: an engine's step that takes longer hangs. `user_jobs`: jobs of one user that may
    run below a root at once; see topology.cap.
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
    ) -> None:
        self.name = name
        self.model = model
        self.engine = engine
        # the engine's slots are a guess until it has started
        self.dispatcher = Dispatcher(engine.slots if engine else 0, policy)
        self.link = BrokerLink()
        self.background = Background(name)
        self.membership = Membership(
            name, parent, self.link, self.dispatcher, self.background, self._membership_changed
        )
        self.announcer = Announcer(self._send_counters, self._send_state, self._report_seconds)
        self.supervisor = EngineSupervisor(
            engine, step_seconds, self._health_changed, self._interrupt_all
        )
        self._incarnation = uuid.uuid4().hex[:8]
        self.jobs = Jobs(
            name,
            model,
            self._incarnation,
            engine,
            self.link,
            self.dispatcher,
            self.membership,
            # the root enforces the cap: the nodes below run what it lets through
            Cap(user_jobs if parent is None else 0),
            on_change=self.announcer.touch,
            on_engine_failure=self.supervisor.restart,
        )
        self.warnings = Warnings(name)
        # resolved with the reason when the parent refuses this node
        self.refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.answered = asyncio.Event()  # the parent has admitted or refused this node
        self.served = False  # it has taken jobs once
        self.status: NodeStatus = "starting"
        self._drained = False
        self._leaving = False
        self._started = time.monotonic()
        self._reports = 0  # sent to parents
        self._sent_capacity: tuple[str, Capacity] | None = None  # to which parent, and what
        self._sent_state: NodeState | None = None

    @property
    def parent(self) -> str | None:
        """The node above; None for a root."""
        return self.membership.parent

    def leave(self) -> None:
        """Takes no more jobs, for good."""
        self._leaving = True
        self._decide_accepting()

    # ---- what arrives

    def on_job(self, job: Job, delivery: Delivery) -> None:
        self.jobs.add(job, delivery)
        self.announcer.touch()

    def on_node_gone(self, name: str) -> None:
        self.membership.on_gone(name)
        self.announcer.touch()

    def on_reader_gone(self, queue: str) -> None:
        self.jobs.reader_gone(queue)
        self.announcer.touch()

    def on_ignored(self, sender: str, reason: str) -> None:
        self.warnings.add(sender or "unknown sender", f"a message from it was ignored: {reason}")
        self.announcer.touch()

    def on_control(self, message: AnyControl) -> None:
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
            case Cancel():
                self.jobs.cancel(message)
            case Supersede():
                self.jobs.supersede(message)
            case Drain():
                self._drain(True)
            case Resume():
                self._drain(False)
            case Ping():
                self.announcer.send_all()
        self.announcer.touch()

    def _on_capacity(self, message: Capacity) -> None:
        """A child's counters replace the known ones if they are consistent."""
        reason = inconsistency(message)
        if message.model not in ("", self.model):  # empty: from a former release
            self.warnings.add(
                message.node, f"refused: it serves {message.model}, and this tree {self.model}"
            )
            self.membership.refuse(message, self.model)
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
        if self.status not in ("starting", "idle") or self.parent is None:
            return
        capacity = self._capacity()
        if always or (self.parent, capacity) != self._sent_capacity:
            self._sent_capacity = self.parent, capacity
            self._reports += 1
            self.membership.report(msgspec.structs.replace(capacity, number=self._reports))

    def _report_seconds(self) -> float:
        if self._sent_capacity is None:
            return self.dispatcher.policy.report_seconds
        _, sent = self._sent_capacity
        return self.dispatcher.report_seconds(sent.free, sent.received)

    def _capacity(self) -> Capacity:
        """The counters. Before this node serves, all it reports is its model."""
        if self.status == "starting":
            return Capacity(
                node=self.name,
                incarnation=self._incarnation,
                slots=0,
                free=0,
                received=0,
                finished=0,
                accepting=False,
                model=self.model,
            )
        return Capacity(
            node=self.name,
            incarnation=self._incarnation,
            slots=self.dispatcher.subtree_slots(),
            free=self.dispatcher.subtree_free(),
            received=self.dispatcher.received,
            finished=self.dispatcher.subtree_finished(),
            accepting=self.dispatcher.accepting,
            model=self.model,
            users=_most_jobs(self.jobs.users()),
        )

    def _send_state(self, always: bool) -> None:
        state = self.state()
        timeless = msgspec.structs.replace(state, started=0.0, sent=0.0)
        if always or timeless != self._sent_state:
            self._sent_state = timeless
            self.link.port.publish_state(state)

    def state(self) -> NodeState:
        """This node as dashboards see it."""
        prompt_tokens, reused_tokens = self.engine.reuse if self.engine else (0, 0)
        now = time.time()  # for people; readers convert it to their own clocks
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
            held=len(self.jobs.waiting),
            received=self.dispatcher.received,
            finished=self.dispatcher.finished,
            tokens=self.jobs.tokens + self.jobs.tokens_running(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=now - (time.monotonic() - self._started),
            sent=now,
            detail=self.supervisor.detail[:NOTE_LETTERS],
            waited=self.jobs.waiting.accuracy.mean_wait,
            prompt_tokens=prompt_tokens,
            reused_tokens=reused_tokens,
            wait_error=self.jobs.waiting.accuracy.mean_error,
            context_length=self.engine.context_length if self.engine else 0,
            warning=self._warning(),
        )

    def _warning(self) -> str:
        own = self.engine.warning if self.engine else ""
        return "; ".join(filter(None, (own, self.warnings.text())))[:NOTE_LETTERS]

    def _shown_status(self) -> NodeStatus:
        if self.status != "idle":
            return self.status
        if self.supervisor.failed:
            return "failed"
        if not self.dispatcher.accepting:
            return "draining" if self.jobs.busy else "drained"
        full = self.dispatcher.slots > 0 and self.dispatcher.running >= self.dispatcher.slots
        return "busy" if full else "idle"

    # ---- the end of a session

    async def abandon(self) -> None:
        """Ends every run without a final frame and forgets what came with the session.

        The broker delivers all jobs again.
        """
        await self.jobs.forget()
        await self.background.end()
        self.announcer.stop()
        self.membership.forget()


def _most_jobs(users: dict[str, int]) -> dict[str, int]:
    """The users with most jobs, at most MAX_USERS."""
    if len(users) <= MAX_USERS:
        return users
    return dict(Counter(users).most_common(MAX_USERS))
