"""The counters of a node's subtree, which it reports to its parent."""

from collections import Counter

import msgspec

from broker.wire import Capacity
from topology.dispatch import Dispatcher
from worker.jobs import Jobs
from worker.membership import Membership

MAX_USERS = 10_000  # reported to the parent: those with most jobs


class CounterReports:
    """Sends the counters when they have changed, and remembers what was sent."""

    def __init__(
        self,
        name: str,
        model: str,
        engine: str,
        incarnation: str,
        jobs: Jobs,
        dispatcher: Dispatcher,
        membership: Membership,
    ) -> None:
        self._name = name
        self._model = model
        self._engine = engine
        self._incarnation = incarnation
        self._jobs = jobs
        self._dispatcher = dispatcher
        self._membership = membership
        self._count = 0  # of reports
        self._sent: tuple[str, Capacity] | None = None  # to which parent, and what

    def send(self, parent: str, always: bool, *, serving: bool) -> None:
        """Reports to the parent if it does not know; always: even then."""
        capacity = self._capacity(serving)
        if always or (parent, capacity) != self._sent:
            self._sent = parent, capacity
            self._count += 1
            self._membership.report(msgspec.structs.replace(capacity, number=self._count))

    def pause(self) -> float:
        """Seconds from the last report to the next, which depend on what has changed since."""
        if self._sent is None:
            return self._dispatcher.policy.report_seconds
        _, sent = self._sent
        return self._dispatcher.report_seconds(sent.free, sent.received)

    def _capacity(self, serving: bool) -> Capacity:
        """Before the node serves, all it reports is its model."""
        if not serving:
            return Capacity(
                node=self._name,
                incarnation=self._incarnation,
                slots=0,
                free=0,
                received=0,
                finished=0,
                accepting=False,
                model=self._model,
                engine=self._engine,
            )
        return Capacity(
            node=self._name,
            incarnation=self._incarnation,
            slots=self._dispatcher.subtree_slots(),
            free=self._dispatcher.subtree_free(),
            received=self._dispatcher.received,
            finished=self._dispatcher.subtree_finished(),
            accepting=self._dispatcher.accepting,
            model=self._model,
            engine=self._engine,
            users=_most_jobs(self._jobs.users()),
        )


def _most_jobs(users: dict[str, int]) -> dict[str, int]:
    """The users with most jobs, at most MAX_USERS."""
    if len(users) <= MAX_USERS:
        return users
    return dict(Counter(users).most_common(MAX_USERS))
