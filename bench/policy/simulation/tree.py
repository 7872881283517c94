"""The tree as discrete events: every node decides with the very `Dispatcher` of real nodes.

Jobs and counters travel as messages that take a while. Nodes queue jobs first come, first
served. Not simulated: faults, and that a node gives back jobs which it has queued for seconds.
"""

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from bench.policy.simulation.jobs import Workload
from topology import shape
from topology.children import Child
from topology.dispatch import Dispatcher, Forward, Hold, Policy

ROOT = "root"


@dataclass(frozen=True)
class Plan:
    """The tree of `canopy up --nodes NODES --fanout FANOUT --slots SLOTS`; None: a flat one."""

    nodes: int
    fanout: int | None = None
    slots: int = 1

    @property
    def parents(self) -> dict[str, str]:
        """Of every node but the root; parents come first."""
        names = enumerate(shape.node_names(self.nodes), 1)
        return {name: shape.parent_of(at, fanout=self.fanout, root=ROOT) for at, name in names}

    @property
    def capacity(self) -> int:
        """Slots of the whole tree."""
        return self.nodes * self.slots


@dataclass(frozen=True, slots=True)
class Handling:
    """What a node's process needs for a message, in mean services: it handles one at a time."""

    job: float = 0.0  # in and out
    report: float = 0.0


INSTANT = Handling()


@dataclass(slots=True, eq=False)
class _Node:
    """A simulated node."""

    name: str
    dispatcher: Dispatcher
    parent: "_Node | None" = None
    subtree_slots: int = 0
    queue: deque[int] = field(default_factory=deque)  # jobs, oldest first
    reported: tuple[int, int] = (-1, -1)  # last: free slots, jobs received
    reported_at: float = float("-inf")
    report_due: bool = False
    busy_until: float = 0.0  # with messages that have arrived
    worked: float = 0.0  # on messages
    jobs_in: int = 0
    reports_in: int = 0


class TreeRun:
    """`run` it once. Times, of a message (`hop`) and between reports, are in mean services."""

    def __init__(
        self,
        plan: Plan,
        policy: Policy,
        workload: Workload,
        hop: float,
        report_interval: float,
        handling: Handling = INSTANT,
    ) -> None:
        self._workload = workload
        self._hop = hop
        self._report_interval = report_interval
        self._handling = handling
        self._events: list[tuple[float, int, Any, _Node, Any]] = []  # at, number, handler, …
        self._numbers = itertools.count()
        self._nodes = _grow(plan, policy)
        self._starts = [0.0] * len(workload.arrivals)

    def run(self) -> list[float]:
        """When each job started."""
        root = self._nodes[ROOT]
        events = self._events
        for job, arrival in enumerate(self._workload.arrivals):
            while events and events[0][0] <= arrival:
                self._step()
            self._job_arrives(arrival, root, job)
        while events:
            self._step()
        return self._starts

    def messages(self) -> list[tuple[str, int, int, float]]:
        """Of each node: its name, jobs and reports that arrived, and its time with them."""
        nodes = self._nodes.values()
        return [(node.name, node.jobs_in, node.reports_in, node.worked) for node in nodes]

    def _step(self) -> None:
        now, _, handler, node, subject = heapq.heappop(self._events)
        handler(now, node, subject)

    def _schedule(self, at: float, handler: Any, node: _Node, subject: Any) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), handler, node, subject))

    def _job_arrives(self, now: float, node: _Node, job: int) -> None:
        node.jobs_in += 1
        self._handle(now, self._handling.job, self._on_job, node, job)

    def _report_arrives(self, now: float, node: _Node, child: Child) -> None:
        node.reports_in += 1
        self._handle(now, self._handling.report, self._on_report, node, child)

    def _handle(self, now: float, seconds: float, handler: Any, node: _Node, subject: Any) -> None:
        """When the node has handled what arrived before."""
        if not seconds:
            handler(now, node, subject)
            return
        node.worked += seconds
        node.busy_until = max(now, node.busy_until) + seconds
        self._schedule(node.busy_until, handler, node, subject)

    def _on_job(self, now: float, node: _Node, job: int) -> None:
        node.dispatcher.job_received()
        node.queue.append(job)
        self._dispatch(now, node)

    def _on_end(self, now: float, node: _Node, _job: int) -> None:
        node.dispatcher.run_ended()
        self._dispatch(now, node)

    def _on_report(self, now: float, node: _Node, child: Child) -> None:
        node.dispatcher.put_child(child)
        self._dispatch(now, node)

    def _dispatch(self, now: float, node: _Node) -> None:
        """Places queued jobs, oldest first, until one has to stay; then reports."""
        queue, dispatcher = node.queue, node.dispatcher
        while queue:
            decision = dispatcher.decide()
            if isinstance(decision, Hold):
                break
            job = queue.popleft()
            if isinstance(decision, Forward):
                dispatcher.forwarded(decision.child)
                child = self._nodes[decision.child]
                self._schedule(now + self._hop, self._job_arrives, child, job)
            else:
                dispatcher.run_started()
                self._starts[job] = now
                self._schedule(now + self._workload.services[job], self._on_end, node, job)
        self._report_soon(now, node)

    def _report_soon(self, now: float, node: _Node) -> None:
        due = node.reported_at + self._report_interval
        if node.parent is None or node.report_due:
            return
        if due <= now:
            self._report(now, node, None)
        else:
            node.report_due = True
            self._schedule(due, self._report, node, None)

    def _report(self, now: float, node: _Node, _nothing: None) -> None:
        """Sends the counters to the parent, unless it knows them."""
        node.report_due = False
        counters = node.dispatcher.subtree_free(), node.dispatcher.received
        if node.parent is not None and counters != node.reported:
            node.reported, node.reported_at = counters, now
            free, received = counters
            finished = node.dispatcher.finished
            report = Child(node.name, node.subtree_slots, free, received, finished)
            self._schedule(now + self._hop, self._report_arrives, node.parent, report)


def _grow(plan: Plan, policy: Policy) -> dict[str, _Node]:
    """The nodes by name; every parent knows its children, all of them idle."""
    nodes = {ROOT: _Node(ROOT, Dispatcher(0, policy))}
    for name, parent in plan.parents.items():
        nodes[name] = _Node(name, Dispatcher(plan.slots, policy), nodes[parent])
    for name, node in reversed(nodes.items()):  # children first: their slots are counted then
        node.subtree_slots = slots = node.dispatcher.subtree_slots()
        if node.parent is not None:
            node.parent.dispatcher.put_child(Child(name, slots, free=slots))
    return nodes
