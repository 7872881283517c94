"""A node: what it does with each control message, and what others learn of it. `jobs.py` has the jobs in its hands,
`membership.py` its place in the tree, `care.py` its engine's health; `life.py` starts, serves and ends it.

Every method here runs on the event loop and returns at once; the broker is reached through `NodePort`, the decisions
are `topology.dispatch`'s.
"""

import asyncio
import os
import socket
import time
import uuid
from collections import Counter

import msgspec

from broker.malformed import inconsistency
from broker.node import NodePort
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
from worker.care import EngineCare
from worker.engines.base import Engine
from worker.jobs import Jobs
from worker.membership import Membership
from worker.warnings import Warnings
from worker.watchdog import STEP_SECONDS

NOTE_LETTERS = 2000  # of a sentence for people in a node's state
MOST_USERS = 10_000  # told to the parent, those with most jobs


class Node:
    """The state of one node and its reactions. `step_seconds`: a step of the engine that takes longer hangs.
    `user_jobs`: so many jobs of one user at most run below a root at once; see topology.cap.
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
        self.dispatcher = Dispatcher(
            engine.slots if engine else 0, policy
        )  # a guess until the engine has started
        self.background = Background(name)
        self.membership = Membership(
            name, parent, self.dispatcher, self.background, self._membership_changed
        )
        self.announcer = Announcer(self._tell_counters, self._tell_state, self._pace)
        self.care = EngineCare(engine, step_seconds, self._health_changed, self._hung)
        self._incarnation = uuid.uuid4().hex[:8]
        self._told = 0  # times that the parent was told the counters
        self._told_capacity: tuple[str, Capacity] | None = None  # and whom
        self._told_state: NodeState | None = None
        self.jobs = Jobs(
            name,
            model,
            self._incarnation,
            engine,
            self.dispatcher,
            self.membership,
            self.announcer.touch,
            self.care.failure,
            Cap(
                user_jobs if parent is None else 0
            ),  # the nodes below run what the root lets through
        )
        self.warnings = Warnings(name)
        self.refused: asyncio.Future[str] = (
            asyncio.get_running_loop().create_future()
        )  # why the parent wants it not
        self.served = False  # it has taken jobs once
        self.admitted = asyncio.Event()  # the parent has answered, whatever it said
        self.status: NodeStatus = "starting"
        self._drained = False
        self._leaving = False
        self._port: NodePort
        self._started = time.monotonic()

    @property
    def parent(self) -> str | None:
        """The node above; None for a root."""
        return self.membership.parent

    @property
    def port(self) -> NodePort:
        """The broker, for this session."""
        return self._port

    @port.setter
    def port(self, port: NodePort) -> None:
        self._port = self.membership.port = self.jobs.port = port

    def leave(self) -> None:
        """Takes no more jobs, for good."""
        self._leaving = True
        self._decide_accepting()

    # ---- what the broker tells

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
        self.warnings.add(sender or "somebody", f"a message from it was ignored: {reason}")
        self.announcer.touch()

    def on_control(self, message: AnyControl) -> None:
        match message:
            case ResumeGrant():
                self.jobs.questions.answered(message)
            case Capacity():
                self._on_capacity(message)
            case Leave():
                self.membership.on_leave(message)
            case Ancestors():
                self.membership.on_ancestors(message)
                self.admitted.set()
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
                self.announcer.tell_all()
        self.announcer.touch()

    def _on_capacity(self, message: Capacity) -> None:
        """A child's counters are believed if they can be true; else what was known of it stays."""
        reason = inconsistency(message)
        if message.model not in ("", self.model):  # empty: of a former version
            self.warnings.add(
                message.node, f"refused: it serves {message.model}, and this tree {self.model}"
            )
            self.membership.refuse(message, self.model)
        elif reason:
            self.warnings.add(message.node, f"its counters were ignored: {reason}")
        elif message.node != self.name:
            self.membership.on_capacity(message)

    def _on_refused(self, message: Refused) -> None:
        """The parent serves another model. A node that has not served ends; one that was moved there goes back."""
        if message.parent != self.parent:
            return
        self.warnings.add(message.parent, message.reason)
        if self.served:
            self.membership.on_refused()
        elif not self.refused.done():
            self.refused.set_result(message.reason)
        self.admitted.set()

    # ---- what changes whether it takes jobs

    def _drain(self, drained: bool) -> None:
        self._drained = drained
        self._decide_accepting()

    def _health_changed(self) -> None:
        if self.engine is not None and self.care.ready:
            # No job starts before this, and no parent hears of room. After a restart they may be fewer than jobs that
            # wait for their readers to go on: those keep their slots, and none is free until enough of them have ended.
            self.dispatcher.set_slots(self.engine.slots)
        self.jobs.engine_ready(self.care.ready)
        self._decide_accepting()

    def _membership_changed(self) -> None:
        self._decide_accepting()
        self.announcer.touch()

    def _decide_accepting(self) -> None:
        """A node whose engine failed still passes jobs on to its children, if it has any."""
        useful = self.care.ready or bool(self.dispatcher.children)
        accepting = useful and not self._drained and not self._leaving
        changed = self.dispatcher.set_accepting(accepting)
        self.jobs.pump()
        if changed and self.status == "idle":
            self.announcer.tell_all()

    def _hung(self, reason: str) -> None:
        self.jobs.interrupt_all(reason, fault=True)

    # ---- what others learn of this node

    def _tell_counters(self, always: bool) -> None:
        self.jobs.waiting.observe()
        if self.status not in ("starting", "idle") or self.parent is None:
            return
        capacity = self._capacity()
        if always or (self.parent, capacity) != self._told_capacity:
            self._told_capacity = self.parent, capacity
            self._told += 1
            self.membership.report(msgspec.structs.replace(capacity, number=self._told))

    def _pace(self) -> float:
        _, told = self._told_capacity or ("", None)
        if told is None:
            return self.dispatcher.policy.report_seconds
        return self.dispatcher.report_seconds(told.free, told.received)

    def _capacity(self) -> Capacity:
        """The counters. Before this node serves they only tell its parent the model."""
        if self.status == "starting":
            nothing = Capacity(
                node=self.name, slots=0, free=0, received=0, finished=0, accepting=False
            )
            return msgspec.structs.replace(nothing, incarnation=self._incarnation, model=self.model)
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

    def _tell_state(self, always: bool) -> None:
        state = self.state()
        timeless = msgspec.structs.replace(state, started=0.0, sent=0.0)
        if always or timeless != self._told_state:
            self._told_state = timeless
            self.port.publish_state(state)

    def state(self) -> NodeState:
        """This node as dashboards see it."""
        reuse = self.engine.reuse if self.engine else (0, 0)
        now = time.time()  # for people alone: readers move it to their own clocks
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
            detail=self.care.detail[:NOTE_LETTERS],
            waited=self.jobs.waiting.accuracy.mean_wait,
            prompt_tokens=reuse[0],
            reused_tokens=reuse[1],
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
        if self.care.failed:
            return "failed"
        if not self.dispatcher.accepting:
            return "draining" if self.jobs.busy else "drained"
        full = self.dispatcher.slots > 0 and self.dispatcher.running >= self.dispatcher.slots
        return "busy" if full else "idle"

    # ---- the end of a session

    async def abandon(self) -> None:
        """Ends every run without a final frame and forgets all that came with the session; the broker delivers
        all of it again.
        """
        await self.jobs.forget()
        await self.background.end()
        self.announcer.stop()
        self.membership.forget()


def _most_jobs(users: dict[str, int]) -> dict[str, int]:
    """The users with most jobs, as many as a parent is told of."""
    if len(users) <= MOST_USERS:
        return users
    return dict(Counter(users).most_common(MOST_USERS))
