"""The dispatch rule: what a node does with the next job. Pure: no clock, no I/O, no broker.

Nodes and the simulator run this same code. A job arrives at a node: *run* it if a slot is free,
else *forward* it to the next child in round-robin order that has room, else *hold* it. What "has
room" means is the policy.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, Protocol

from topology.children import Child, Children

QUIET_SECONDS = 0.1  # delay of a report that changes no decision of the parent yet


@dataclass(frozen=True, slots=True)
class Run:
    """Start the job here."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Hand the job to this child."""

    child: str


HoldCode = Literal["busy", "no_node", "paused"]


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the job until something changes. `code`: the kind of reason."""

    reason: str
    code: HoldCode


Decision = Run | Forward | Hold


class Policy(Protocol):
    """What policies differ in: when a child has room."""

    name: str
    report_seconds: float  # delay of a report to the parent that may change its decisions
    returns: bool  # a node below the root gives back jobs that it could not place for a while

    def has_room(self, child: Child) -> bool:
        """True if a job may be forwarded to `child` now."""


class Paper:
    """The literal rule of the original design: a child always has room; only a busy leaf holds."""

    name = "paper"
    report_seconds = QUIET_SECONDS  # free slots do not matter to it
    returns = False

    def has_room(self, child: Child) -> bool:
        return child.accepting


class HoldHigh:
    """A child has room when its subtree has a free slot.

    So the backlog stays as high as possible, normally at the root, where it can be ordered and
    counted, and any slot that frees anywhere takes the next job.
    """

    name = "hold-high"
    report_seconds = 0.004  # a freed slot idles until the parent knows of it
    returns = True

    def has_room(self, child: Child) -> bool:
        return child.room > 0


POLICIES: dict[str, type[Policy]] = {Paper.name: Paper, HoldHigh.name: HoldHigh}
DEFAULT_POLICY = HoldHigh.name
ROOT_PREFETCH = 10_000  # jobs that a root takes from the broker to order them; the rest waits there
FORWARD_PREFETCH = 256  # jobs that other nodes take beyond their slots, to pipeline forwards


class Dispatcher:
    """One node's view of itself and its children, and the rule over it.

    It owns the node's counters; the node reports every event to it.
    """

    def __init__(self, slots: int, policy: Policy) -> None:
        self.policy = policy
        self._slots = slots
        self._most_slots = slots
        self._accepting = True
        self._starts_paused = False
        self._running = 0
        self._received = 0
        self._finished = 0
        self._finished_below = 0  # jobs that ended in children while they hung here
        self._children = Children(policy.has_room)
        self._last_served = ""  # child

    @property
    def slots(self) -> int:
        """Jobs that this node itself can run at once."""
        return self._slots

    @property
    def accepting(self) -> bool:
        """False while the node places no jobs at all: it drains, leaves or cannot serve."""
        return self._accepting

    @property
    def starts_paused(self) -> bool:
        """True while no job may start here; it may still be forwarded."""
        return self._starts_paused

    @property
    def running(self) -> int:
        """Jobs that run on this node now."""
        return self._running

    @property
    def received(self) -> int:
        """Jobs that arrived at this node since it started."""
        return self._received

    @property
    def finished(self) -> int:
        """Jobs that ended on this node since it started."""
        return self._finished

    @property
    def children(self) -> tuple[Child, ...]:
        """The children in round-robin order."""
        return tuple(self._children)

    # ---- events of this node

    def set_slots(self, slots: int) -> None:
        """The engine has started, or has room for more jobs or fewer than before."""
        self._slots = slots
        self._most_slots = max(self._most_slots, slots)

    def set_accepting(self, accepting: bool) -> bool:
        """Places jobs from now on, or none. True if that is a change."""
        changed = accepting != self._accepting
        self._accepting = accepting
        return changed

    def pause_starts(self, paused: bool) -> None:
        """No job may start here while paused."""
        self._starts_paused = paused

    def job_received(self) -> None:
        """A job arrived."""
        self._received += 1

    def job_rejected(self) -> None:
        """A job that arrived ended here without a run."""
        self._finished += 1

    def run_started(self) -> None:
        """A job took a slot."""
        self._running += 1

    def run_ended(self) -> None:
        """A run ended, however it did, and its slot is free."""
        self._running -= 1
        self._finished += 1

    # ---- the rule

    def decide(self) -> Decision:
        """What to do with the next job. Changes nothing: the caller reports what it then did."""
        if not self._accepting:
            return Hold("the node is draining", "paused")
        if self._running < self._slots and not self._starts_paused:
            return Run()
        child = self._children.next_with_room(self._last_served)
        if child is not None:
            return Forward(child.name)
        return self._hold()

    # ---- children

    def child(self, name: str) -> Child | None:
        """What is known about that child, or None if there is none of that name."""
        return self._children.get(name)

    def put_child(self, child: Child) -> None:
        """Adds the child or replaces what was known about it; a late report is ignored.

        From then on `child` belongs to this dispatcher, which counts what it forwards. Jobs in
        transit to a known child stay so; a child that is new, or was restarted and counts from 0
        again, has none.
        """
        known = self._children.get(child.name)
        if known is None or child.incarnation != known.incarnation:
            child.sent = child.received
        elif child.number < known.number:
            return
        else:
            child.sent = max(known.sent, child.received)
            self._finished_below += max(0, child.finished - known.finished)
        self._children.put(child)

    def remove_child(self, name: str) -> None:
        """Forgets the child; unknown names are ignored."""
        self._children.remove(name)

    def forwarded(self, name: str, user: str = "") -> None:
        """A job of that user was forwarded to that child, which is now the last one served."""
        self._last_served = name
        self._children.sent_to(name, user)

    def lost_in_transit(self, name: str) -> None:
        """Jobs that were forwarded to that child and never arrived are lost: stop counting them."""
        self._children.lost_in_transit(name)

    # ---- totals

    def prefetch(self) -> int:
        """How many unsettled jobs to take from a queue.

        A root takes all that it is to order; other nodes take enough to fill their slots and to
        pipeline forwards.
        """
        if self._slots == 0:
            return ROOT_PREFETCH
        return self._most_slots + FORWARD_PREFETCH

    def subtree_slots(self) -> int:
        """Slots here and below, as reported by the children."""
        return self._slots + self._children.slots

    def open_slots(self) -> int:
        """Slots here and below that take jobs as soon as they are free."""
        if not self._accepting:
            return 0
        slots = 0 if self._starts_paused else self._slots
        return slots + self._children.open_slots

    def subtree_free(self) -> int:
        """Free slots here and below that no job in transit will take."""
        if not self._accepting:
            return 0
        free = self._children.room
        if not self._starts_paused:
            free += max(0, self._slots - self._running)
        return free

    def subtree_finished(self) -> int:
        """Jobs that ended here and in the children while they hung here. It never falls."""
        return self._finished + self._finished_below

    def users_below(self) -> Counter[str]:
        """Jobs by user, at the children or in transit to them."""
        return self._children.users.copy()

    def jobs_below(self, user: str) -> int:
        """Jobs of that user, at the children or in transit to them."""
        return self._children.users[user]

    def report_seconds(self, free: int, received: int) -> float:
        """How soon the parent should hear of a change.

        The last report said that `free` slots are free when `received` jobs had arrived. While that
        leaves more than a quarter of the slots for jobs that the parent forwards, no news is
        urgent. (A user at the cap may wait that much longer.)
        """
        known_free = free - (self._received - received)
        if known_free > self.subtree_slots() // 4:
            return QUIET_SECONDS
        return self.policy.report_seconds

    def _hold(self) -> Hold:
        if not len(self._children) and not self._slots:
            return Hold("no node is connected", "no_node")
        if not self._starts_paused and self._slots:
            return Hold("every slot is busy", "busy")
        if self._children.accepting:
            return Hold("every slot is busy", "busy")
        return Hold("no node takes jobs now: they are paused or have failed", "paused")
