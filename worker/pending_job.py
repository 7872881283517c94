"""A job at this node whose delivery is not settled yet.

A large waiting job keeps its content once, as the bytes that arrived. Decoded, a text takes one,
two or four bytes a character, beside the message that it was decoded from, and thousands of long
prompts may wait at a root. So a large job waits without its content, which is decoded again when it
goes.
"""

from dataclasses import dataclass

import msgspec

from broker.deadline import expiry, with_time_left
from broker.session import Delivery
from broker.wire import Job, decode
from topology.fair_queue import Entry

LARGE_BYTES = 16 * 1024  # of a message; below, decoding it again costs more than it saves
MAX_TRAIL = 64  # nodes, the latest: a job may be given back and forwarded again and again


@dataclass(slots=True, eq=False)
class PendingJob:
    """A job with its delivery, and what its reader was told while it waited.

    Times are on the monotonic clock. `expires`: None means never.
    """

    job: Job  # a large one without its content
    delivery: Delivery
    expires: float | None = None
    entry: "Entry[PendingJob] | None" = None  # the newest one in the queue
    queued_at: float = 0.0
    notified: tuple[str, int] | None = None  # the reason and position last sent to the reader
    notify_after: float = 0.0  # when a new position or estimate may be sent
    promised_start: float | None = None  # as last sent to the reader
    first_estimate: tuple[float, float] | None = None  # when it was made, seconds

    @classmethod
    def of(cls, job: Job, delivery: Delivery) -> "PendingJob":
        """The job as it has just arrived."""
        return cls(without_content(job, delivery), delivery, expiry(job))

    def whole_job(self) -> Job:
        """The job with its content."""
        return with_content(self.job, self.delivery)

    def job_for_parent(self) -> Job:
        """The job as it goes back to the parent."""
        return with_time_left(self.whole_job(), self.expires)

    def job_from(self, node: str) -> Job:
        """The job as `node` forwards it, or makes it a dead letter."""
        job = self.job_for_parent()
        return msgspec.structs.replace(job, trail=(*job.trail, node)[-MAX_TRAIL:])


def without_content(job: Job, delivery: Delivery) -> Job:
    """The job as it waits. Either its content or the delivery's body is dropped."""
    if len(delivery.body) < LARGE_BYTES:
        delivery.body = b""
        return job
    return msgspec.structs.replace(job, messages=None, prompt=None, delivered="", delivered_ids=())


def with_content(job: Job, delivery: Delivery) -> Job:
    """The whole job again. While it waits nothing of it changes but `restarted`."""
    if not delivery.body:
        return job
    return msgspec.structs.replace(decode(delivery.body, Job), restarted=job.restarted)
