"""The dispatch rule: what a node does with the next job. Pure: no clock, no I/O, no broker.

The nodes and the simulator run this same code. A job arrives at a node: *run* it if a slot is free, else *forward*
it to the next child in round-robin order that has room, else *hold* it. What "has room" means is the policy.
"""

import re
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

QUIET_SECONDS = 0.1  # how soon a parent hears of a change that makes no difference to it yet


@dataclass(slots=True)
class Child:
    """What a node knows about one child: the child's own absolute counters, and what was sent to it.

    `slots`, `free`, `finished` and `users` count the child's whole subtree. `received` counts the jobs that have come
    to the child, `sent` those that this node forwarded to it, on the same scale: the difference is still on its way.
    `number` grows within one life (`incarnation`) of the child.
    """

    name: str
    slots: int = 0
    free: int = 0
    received: int = 0
    finished: int = 0
    accepting: bool = True
    incarnation: str = ""
    number: int = 0
    users: Mapping[str, int] = field(default_factory=dict)  # whose jobs they are, and how many
    sent: int = 0

    @property
    def on_way(self) -> int:
        """Jobs that were forwarded and have not come to the child, as far as it said."""
        return max(0, self.sent - self.received)

    @property
    def room(self) -> int:
        """Free slots in the subtree that nothing is on its way to."""
        return max(0, self.free - self.on_way) if self.accepting else 0


@dataclass(frozen=True, slots=True)
class Run:
    """Start the job here."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Hand the job to this child."""

    child: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the job until something changes."""

    reason: str


Decision = Run | Forward | Hold


class Policy(Protocol):
    """The only thing in which policies differ."""

    name: str
    report_seconds: float  # how soon a parent must hear of a change for the policy to work well
    returns: bool  # a node below the root gives back what it could not place for a while

    def has_room(self, child: Child) -> bool:
        """True if a job may be forwarded to `child` now."""


class Paper:
    """The literal rule of the original design: a child can always take one more; only a busy leaf holds."""

    name = "paper"
    report_seconds = QUIET_SECONDS  # only whether the child is there and accepts counts
    returns = False

    def has_room(self, child: Child) -> bool:
        return child.accepting


class HoldHigh:
    """A child has room when its subtree has a free slot. So the backlog stays as high as possible, normally at the
    root, where it can be ordered and counted, and any slot that frees anywhere takes the next job.
    """

    name = "hold-high"
    report_seconds = 0.004  # a slot idles until the parent knows that it is free
    returns = True

    def has_room(self, child: Child) -> bool:
        return child.room > 0


POLICIES: dict[str, type[Policy]] = {Paper.name: Paper, HoldHigh.name: HoldHigh}
DEFAULT_POLICY = HoldHigh.name
ORDERED = 10_000  # jobs that a root takes out of the broker to put them in order; what is behind them waits there
PIPELINED = 256  # jobs that another node takes beyond its slots, so that its forwards are pipelined


@lru_cache(maxsize=4096)
def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which n2 comes before n10, so that 'in turn' follows the numbers people gave."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.findall(r"\d+|\D+", name)
    )


class Dispatcher:
    """One node's view of itself and its children, and the rule over it. The node reports every fact to it."""

    def __init__(self, slots: int, policy: Policy) -> None:
        self.slots = slots
        self.policy = policy
        self.accepting = True
        self.closed = False  # no job may start here now, though it may be forwarded
        self.running = 0
        self.received = 0
        self.finished = 0
        self._finished_below = 0  # while their nodes were children of this one
        self._children: dict[str, Child] = {}  # in natural order of their names
        self._order: list[str] = []  # those names
        self._on_way: dict[
            str, deque[str]
        ] = {}  # child -> users of what is on its way, oldest first
        self._last = ""  # the child served last

    @property
    def children(self) -> tuple[Child, ...]:
        """The children in round-robin order."""
        return tuple(self._children.values())

    def decide(self) -> Decision:
        """What to do with the next job. Changes nothing: the caller reports what it then did."""
        if not self.accepting:
            return Hold("the node is draining")
        if self.running < self.slots and not self.closed:
            return Run()
        for child in self._in_turn():
            if self.policy.has_room(child):
                return Forward(child.name)
        return Hold(self._why())

    def child(self, name: str) -> Child | None:
        """What is known about that child, or None if there is none of that name."""
        return self._children.get(name)

    def put_child(self, child: Child) -> None:
        """Adds the child or replaces what was known about it; what it said earlier and comes late is ignored. From then
        on `child` belongs to this dispatcher, which counts what it sends.

        What is on its way to a known child stays so; for a new one, and one that has started again (it counts from the
        beginning), nothing is.
        """
        known = self._children.get(child.name)
        if known is None or child.incarnation != known.incarnation:
            child.sent = child.received
        elif child.number < known.number:
            return
        else:
            child.sent = max(known.sent, child.received)
            self._finished_below += max(0, child.finished - known.finished)
        self._children[child.name] = child
        on_way = self._on_way.setdefault(child.name, deque())
        while len(on_way) > child.on_way:
            on_way.popleft()
        if known is None:
            self._sort()

    def remove_child(self, name: str) -> None:
        """Forgets the child; unknown names are ignored."""
        if self._children.pop(name, None) is not None:
            del self._on_way[name]
            self._sort()

    def forwarded(self, name: str, user: str = "") -> None:
        """A job of that user went to that child: it is the last one served."""
        self._last = name
        if (child := self._children.get(name)) is not None:
            child.sent += 1
            self._on_way[name].append(user)

    def arrived(self, name: str) -> None:
        """Nothing is on its way to that child: what it has not received was lost on the way."""
        if (child := self._children.get(name)) is not None:
            child.sent = child.received
            self._on_way[name].clear()

    def window(self) -> int:
        """How many jobs to take from a queue before the first is settled: all that a root is to put in order;
        elsewhere enough to fill every slot and to keep forwards pipelined.
        """
        return self.slots + PIPELINED if self.slots else ORDERED

    def subtree_slots(self) -> int:
        """Slots here and below, as far as the children said."""
        return self.slots + sum(child.slots for child in self._children.values())

    def subtree_free(self) -> int:
        """Free slots here and below that nothing is on its way to."""
        if not self.accepting:
            return 0
        own = 0 if self.closed else max(0, self.slots - self.running)
        return own + sum(child.room for child in self._children.values())

    def subtree_finished(self) -> int:
        """Jobs that have ended here and, since they hang here, in the nodes below. It never falls."""
        return self.finished + self._finished_below

    def users_below(self) -> Counter[str]:
        """Whose jobs are with the children or on their way to them, and how many."""
        found: Counter[str] = Counter()
        for child in self._children.values():
            found.update(child.users)
        for on_way in self._on_way.values():
            found.update(on_way)
        return found

    def jobs_below(self, user: str) -> int:
        """How many jobs of that user are with the children or on their way to them."""
        return sum(
            child.users.get(user, 0) + self._on_way[name].count(user)
            for name, child in self._children.items()
        )

    def report_seconds(self, free: int, received: int) -> float:
        """How soon the parent should hear of a change.

        It was told last that `free` slots are free, when `received` jobs had come: as long as it knows of more than a
        quarter of the slots beyond what it has sent since, it can go on. (A user at the cap may wait that much longer.)
        """
        known = free - (self.received - received)
        return QUIET_SECONDS if known > self.subtree_slots() // 4 else self.policy.report_seconds

    def _sort(self) -> None:
        self._order = sorted(self._children, key=natural)
        self._children = {name: self._children[name] for name in self._order}

    def _in_turn(self) -> Iterator[Child]:
        """The children, starting after the one served last."""
        first = bisect_right(self._order, natural(self._last), key=natural) if self._last else 0
        for place in range(len(self._order)):
            yield self._children[self._order[(first + place) % len(self._order)]]

    def _why(self) -> str:
        if not self._children:
            return "every slot is busy" if self.slots else "no node is connected"
        if not any(child.accepting for child in self._children.values()):
            return "every node below is draining"
        return "every slot is busy"
