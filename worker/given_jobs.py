"""What a parent remembers of the jobs that it gave to joined nodes.

A joined node may give a job back, and could change whose it is on the way, so that another user's
share pays for it. The parent puts back what it knows.
"""

from collections import Counter, OrderedDict

import msgspec

from broker.wire import Job

MAX_JOBS = 10_000  # remembered, the latest
MAX_UNKNOWN = 256  # jobs of one node that are taken back although nothing is known of them

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
        self._given: OrderedDict[tuple[str, str], tuple[object, ...]] = OrderedDict()
        self._unknown: Counter[str] = Counter()

    def give(self, child: str, job: Job) -> None:
        """The job goes to that joined node."""
        fields = tuple(getattr(job, field) for field in _ACCOUNTING)
        self._given[child, job.request_id] = fields
        self._given.move_to_end((child, job.request_id))
        while len(self._given) > MAX_JOBS:
            self._given.popitem(last=False)

    def take_back(self, child: str, job: Job) -> Job | None:
        """The job with the accounting that it had; None if the node cannot have had it.

        After a restart of this node nothing is known: then it is nobody's, the cheapest, and last.
        """
        fields = self._given.pop((child, job.request_id), None)
        if fields is not None:
            return msgspec.structs.replace(job, **dict(zip(_ACCOUNTING, fields, strict=True)))
        if self._unknown[child] >= MAX_UNKNOWN:
            return None
        self._unknown[child] += 1
        neutral = Job(request_id="", model="", reply_to="", created=0)
        fields = tuple(getattr(neutral, field) for field in _ACCOUNTING)
        job = msgspec.structs.replace(job, **dict(zip(_ACCOUNTING, fields, strict=True)))
        return msgspec.structs.replace(job, job_class="batch")
