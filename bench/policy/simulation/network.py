"""The tree as discrete events: every node decides with the very `Dispatcher` of real nodes.

Jobs and counters travel as messages that take `delays.hop`. Nodes queue jobs first come, first
served. Not simulated: faults, and that a node gives back jobs which it has queued for seconds.
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
    """A simulated node. `queue_*`: the length of its queue since a moment, and its integral."""

    name: str
    place: Place
    dispatcher: Dispatcher
    parent: "_Node | None" = None
    subtree_slots: int = 0
    queue: deque[int] = field(default_factory=deque)  # jobs, oldest first
    queue_length: int = 0
    queue_since: float = 0.0
    waited: float = 0.0
    reported: tuple[int, int] = (-1, -1)  # last: free slots, jobs received
    reported_at: float = float("-inf")
    report_due: bool = False


class TreeRun:
    """One run; call `run` once."""

    def __init__(self, plan: Plan, policy: Policy, workload: Workload, delays: Delays) -> None:
        self._workload = workload
        self._delays = delays
        self._events: list[tuple[float, int, Any, _Node, Any]] = []  # at, number, handler, …
        self._numbers = itertools.count()
        self._nodes = _grow(plan, policy)
        self._starts = [0.0] * len(workload.arrivals)
        self._ran_on = [ROOT] * len(workload.arrivals)
        self._backlog = self._largest_backlog = 0

    def run(self) -> Outcome:
        """Until the last job has ended."""
        root = self._nodes[ROOT]
        events = self._events
        for job, arrival in enumerate(self._workload.arrivals):
            while events and events[0][0] <= arrival:
                self._step()
            self._on_job(arrival, root, job)
        while events:
            self._step()
        nodes = self._nodes
        return Outcome(
            workload=self._workload,
            starts=self._starts,
            ran_on=self._ran_on,
            slots={name: node.dispatcher.slots for name, node in nodes.items() if name != ROOT},
            places={name: node.place for name, node in nodes.items()},
            waited={name: node.waited for name, node in nodes.items()},
            largest_backlog=self._largest_backlog,
        )

    def _step(self) -> None:
        now, _, handler, node, subject = heapq.heappop(self._events)
        handler(now, node, subject)

    def _schedule(self, at: float, handler: Any, node: _Node, subject: Any) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), handler, node, subject))

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

    def _report(self, now: float, node: _Node, _nothing: None) -> None:
        """Sends the counters to the parent, unless it knows them."""
        node.report_due = False
        counters = node.dispatcher.subtree_free(), node.dispatcher.received
        if node.parent is not None and counters != node.reported:
            node.reported, node.reported_at = counters, now
            free, received = counters
            finished = node.dispatcher.finished
            report = Child(node.name, node.subtree_slots, free, received, finished)
            self._schedule(now + self._delays.hop, self._on_report, node.parent, report)

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
                self._schedule(now + self._delays.hop, self._on_job, child, job)
            else:
                dispatcher.run_started()
                self._starts[job], self._ran_on[job] = now, node.name
                self._schedule(now + self._workload.services[job], self._on_end, node, job)
        if len(queue) != node.queue_length:
            self._account(now, node)
        if node.parent is not None and not node.report_due:
            due = node.reported_at + self._delays.report
            if due <= now:
                self._report(now, node, None)
            else:
                node.report_due = True
                self._schedule(due, self._report, node, None)

    def _account(self, now: float, node: _Node) -> None:
        node.waited += node.queue_length * (now - node.queue_since)
        self._backlog += len(node.queue) - node.queue_length
        node.queue_length, node.queue_since = len(node.queue), now
        self._largest_backlog = max(self._largest_backlog, self._backlog)


def _grow(plan: Plan, policy: Policy) -> dict[str, _Node]:
    """The nodes by name; every parent knows its children, all of them idle."""
    nodes = {ROOT: _Node(ROOT, "root", Dispatcher(0, policy))}
    for name in plan.parents:
        nodes[name] = _Node(name, plan.place(name), Dispatcher(plan.slots, policy))

    def introduce(parent: _Node) -> None:
        for name, above in plan.parents.items():
            if above == parent.name:
                node = nodes[name]
                node.parent = parent
                introduce(node)
                node.subtree_slots = slots = node.dispatcher.subtree_slots()
                parent.dispatcher.put_child(Child(name, slots, free=slots))

    introduce(nodes[ROOT])
    return nodes
