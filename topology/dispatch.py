"""The dispatch rule: what a node does with the next job. Pure: no clock, no I/O, no broker.

The nodes and the simulator run this same code. A job arrives at a node: *run* it if a slot is free, else *forward*
it to the next child in round-robin order that has room, else *hold* it. What "has room" means is the policy.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Child:
    """What a node knows about one child: the child's own absolute counters, and what was sent to it.

    `slots` and `free` count the child's whole subtree. `received` counts the jobs that have come to the child, `sent`
    those that this node forwarded to it, on the same scale: the difference is still on its way.
    """

    name: str
    slots: int = 0
    free: int = 0
    received: int = 0
    finished: int = 0
    accepting: bool = True
    sent: int = 0

    @property
    def room(self) -> int:
        """Free slots in the subtree that nothing is on its way to."""
        return max(0, self.free - max(0, self.sent - self.received)) if self.accepting else 0


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

    def has_room(self, child: Child) -> bool:
        """True if a job may be forwarded to `child` now."""


class Paper:
    """The literal rule of the original design: a child can always take one more; only a busy leaf holds."""

    name = "paper"
    report_seconds = 0.1  # only whether the child is there and accepts counts

    def has_room(self, child: Child) -> bool:
        return child.accepting


class HoldHigh:
    """A child has room when its subtree has a free slot. So the backlog stays as high as possible, normally at the
    root, where it can be ordered and counted, and any slot that frees anywhere takes the next job.
    """

    name = "hold-high"
    report_seconds = 0.004  # a slot idles until the parent knows that it is free

    def has_room(self, child: Child) -> bool:
        return child.room > 0


POLICIES: dict[str, type[Policy]] = {Paper.name: Paper, HoldHigh.name: HoldHigh}


@lru_cache(maxsize=4096)
def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which n2 comes before n10, so that 'in turn' follows the numbers people gave."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name))


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
        self._children: list[Child] = []  # in natural order of their names
        self._last = ""  # the child served last

    @property
    def children(self) -> tuple[Child, ...]:
        """The children in round-robin order."""
        return tuple(self._children)

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
        return next((child for child in self._children if child.name == name), None)

    def put_child(self, child: Child) -> None:
        """Adds the child or replaces what was known about it. What is on its way to a known child stays so; for a new
        one, and one that has started again (it counts from the beginning), nothing is.
        """
        known = self.child(child.name)
        again = known is None or child.received < known.received
        child = replace(child, sent=child.received if again or known is None else max(known.sent, child.received))
        others = [other for other in self._children if other.name != child.name]
        self._children = sorted([*others, child], key=lambda each: natural(each.name))

    def remove_child(self, name: str) -> None:
        """Forgets the child; unknown names are ignored."""
        self._children = [child for child in self._children if child.name != name]

    def forwarded(self, name: str) -> None:
        """A job went to that child: it is the last one served."""
        self._last = name
        self._children = [
            replace(child, sent=child.sent + 1) if child.name == name else child for child in self._children
        ]

    def window(self) -> int:
        """How many jobs to take from a queue before the first is settled: enough to fill every slot and to keep
        forwards pipelined, few enough that the backlog stays in the broker.
        """
        return self.slots + 256

    def subtree_slots(self) -> int:
        """Slots here and below, as far as the children said."""
        return self.slots + sum(child.slots for child in self._children)

    def subtree_free(self) -> int:
        """Free slots here and below that nothing is on its way to."""
        if not self.accepting:
            return 0
        own = 0 if self.closed else max(0, self.slots - self.running)
        return own + sum(child.room for child in self._children)

    def _in_turn(self) -> list[Child]:
        """The children, starting after the one served last."""
        after = natural(self._last) if self._last else ()
        later = [child for child in self._children if natural(child.name) > after]
        return later + [child for child in self._children if natural(child.name) <= after]

    def _why(self) -> str:
        if not self._children:
            return "every slot is busy" if self.slots else "no node is connected"
        if not any(child.accepting for child in self._children):
            return "every node below is draining"
        return "every slot is busy"
