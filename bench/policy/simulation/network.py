"""The tree as discrete events: every node decides with the very `Dispatcher` that real nodes run.

A job goes from node to node, and a parent learns its children's counters, by messages that take `delays.hop`. Nodes
hold jobs first come, first served. Not simulated: faults, and that a node gives jobs back which it holds for seconds.
"""

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from bench.policy.simulation.laws import Workload
from bench.policy.simulation.outcome import Outcome
from bench.policy.simulation.plan import ROOT, Delays, Place, Plan
from topology.dispatch import Child, Dispatcher, Forward, Hold, Policy


@dataclass(slots=True, eq=False)
class _Node:
    """A simulated node: its dispatcher, and the jobs that it holds, oldest first."""

    name: str
    place: Place
    dispatcher: Dispatcher
    parent: "_Node | None" = None
    slots: int = 0  # in the whole subtree
    held: deque[int] = field(default_factory=deque)
    counted: int = 0  # how many were held since `since`
    since: float = 0.0
    waited: float = 0.0  # the time that jobs were held until then, all jobs together
    told: tuple[int, int] = (-1, -1)  # what the parent was last told: free, received
    told_at: float = float("-inf")
    telling: bool = False  # it will be told what is true then


class TreeRun:
    """One run; use `run` once."""

    def __init__(self, plan: Plan, policy: Policy, workload: Workload, delays: Delays) -> None:
        self._workload = workload
        self._delays = delays
        self._events: list[
            tuple[float, int, Any, _Node, Any]
        ] = []  # when, number, what happens, where, with what
        self._numbers = itertools.count()
        self._nodes = _grow(plan, policy)
        self._starts = [0.0] * len(workload.arrivals)
        self._ran_on = [ROOT] * len(workload.arrivals)
        self._backlog = self._largest = 0

    def run(self) -> Outcome:
        """Until the last job has ended."""
        root = self._nodes[ROOT]
        events, arrivals = self._events, self._workload.arrivals
        for job, arrival in enumerate(arrivals):
            while events and events[0][0] <= arrival:
                self._step()
            self._arrive(arrival, root, job)
        while events:
            self._step()
        nodes = self._nodes
        slots = {name: node.dispatcher.slots for name, node in nodes.items() if name != ROOT}
        places = {name: node.place for name, node in nodes.items()}
        waited = {name: node.waited for name, node in nodes.items()}
        return Outcome(
            self._workload, self._starts, self._ran_on, slots, places, waited, self._largest
        )

    def _step(self) -> None:
        now, _, happens, node, what = heapq.heappop(self._events)
        happens(now, node, what)

    def _later(self, at: float, happens: Any, node: _Node, what: Any) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), happens, node, what))

    # ---- what happens

    def _arrive(self, now: float, node: _Node, job: int) -> None:
        node.dispatcher.job_received()
        node.held.append(job)
        self._pump(now, node)

    def _end(self, now: float, node: _Node, _job: int) -> None:
        node.dispatcher.run_ended()
        self._pump(now, node)

    def _hear(self, now: float, node: _Node, child: Child) -> None:
        node.dispatcher.put_child(child)
        self._pump(now, node)

    def _tell(self, now: float, node: _Node, _nothing: None) -> None:
        """Tells the parent the counters, unless it knows them."""
        node.telling = False
        free, received = node.dispatcher.subtree_free(), node.dispatcher.received
        if node.parent is not None and (free, received) != node.told:
            node.told, node.told_at = (free, received), now
            news = Child(node.name, node.slots, free, received, node.dispatcher.finished)
            self._later(now + self._delays.hop, self._hear, node.parent, news)

    # ---- what a node does then

    def _pump(self, now: float, node: _Node) -> None:
        """Places held jobs, oldest first, until one has to stay; then the counters may have changed."""
        held, dispatcher = node.held, node.dispatcher
        while held:
            decision = dispatcher.decide()
            if isinstance(decision, Hold):
                break
            job = held.popleft()
            if isinstance(decision, Forward):
                dispatcher.forwarded(decision.child)
                self._later(now + self._delays.hop, self._arrive, self._nodes[decision.child], job)
            else:
                dispatcher.run_started()
                self._starts[job], self._ran_on[job] = now, node.name
                self._later(now + self._workload.services[job], self._end, node, job)
        if len(held) != node.counted:
            self._count(now, node)
        if node.parent is not None and not node.telling:
            self._touch(now, node)

    def _touch(self, now: float, node: _Node) -> None:
        at = node.told_at + self._delays.report
        if at <= now:
            self._tell(now, node, None)
        else:
            node.telling = True
            self._later(at, self._tell, node, None)

    def _count(self, now: float, node: _Node) -> None:
        node.waited += node.counted * (now - node.since)
        self._backlog += len(node.held) - node.counted
        node.counted, node.since = len(node.held), now
        self._largest = max(self._largest, self._backlog)


def _grow(plan: Plan, policy: Policy) -> dict[str, _Node]:
    """The nodes by name; every parent knows its children, all of them idle."""
    nodes = {
        name: _Node(name, plan.place(name), Dispatcher(plan.slots, policy)) for name in plan.parents
    }
    nodes[ROOT] = _Node(ROOT, "root", Dispatcher(0, policy))

    def introduce(parent: _Node) -> None:
        for node in [nodes[name] for name, above in plan.parents.items() if above == parent.name]:
            node.parent = parent
            introduce(node)
            node.slots = node.dispatcher.subtree_slots()
            parent.dispatcher.put_child(Child(node.name, node.slots, free=node.slots))

    introduce(nodes[ROOT])
    return nodes
