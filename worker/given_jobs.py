"""What a parent remembers of the jobs that it gave to joined nodes.

A joined node may give a job back, and could change whose it is on the way, so that another user's
share pays for it. The parent puts back what it knows.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import msgspec

from broker.wire import Job

MAX_JOBS = 10_000  # remembered, the latest
# Jobs that one node may give back beyond those that it was given, as far as is known.
MAX_UNKNOWN = 256

_ACCOUNTING = (
    "user",
    "key",
    "job_class",
    "work",
    "expected",
    "most_running",
    "most_waiting",
    "share",
)


class GivenJobs:
    """The accounting of jobs by child and request."""

    def __init__(self) -> None:
        self._given: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
        self._users: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by child
        self._unknown: Counter[str] = Counter()

    def give(self, child: str, job: Job) -> None:
        """The job goes to that joined node."""
        self._forget(child, job.request_id)
        self._given[child, job.request_id] = _accounting(job)
        self._users[child][job.user] += 1
        self._unknown[child] = max(0, self._unknown[child] - 1)
        while len(self._given) > MAX_JOBS:
            self._forget(*next(iter(self._given)))

    def possible_users(self, child: str, users: Mapping[str, int]) -> dict[str, int]:
        """The jobs by user that the child says it has, as far as it was given them: invented ones
        would keep their users' own jobs waiting.
        """
        given = self._users.get(child, Counter())
        return {user: min(count, given[user]) for user, count in users.items() if given[user]}

    def take_back(self, child: str, job: Job) -> Job | None:
        """The job with the accounting that it had; None if the node cannot have had it.

        After a restart of this node nothing is known: then it is nobody's, the cheapest, and last.
        """
        fields = self._forget(child, job.request_id)
        if fields is None:
            if self._unknown[child] >= MAX_UNKNOWN:
                return None
            self._unknown[child] += 1
            fields = _NOBODYS
        return msgspec.structs.replace(job, **fields)

    def _forget(self, child: str, request_id: str) -> dict[str, Any] | None:
        fields = self._given.pop((child, request_id), None)
        if fields is not None:
            users = self._users[child]
            users[fields["user"]] -= 1
            if not users[fields["user"]]:
                del users[fields["user"]]
            if not users:
                del self._users[child]
        return fields


def _accounting(job: Job) -> dict[str, Any]:
    return {field: getattr(job, field) for field in _ACCOUNTING}


_NOBODYS = _accounting(Job(request_id="", model="", reply_to="", created=0, job_class="batch"))
