"""A job at this node whose delivery is not settled yet.

A large waiting job keeps its content once, as the bytes that arrived. Decoded, a text takes one,
two or four bytes a character, beside the message that it was decoded from, and thousands of long
prompts may wait at a root. So a large job waits without its content, which is decoded again when it
goes.
"""

import time
from dataclasses import dataclass, field

import msgspec

from broker.deadline import expiry, time_left
from broker.encoding import decode
from broker.session import Delivery
from broker.tracing import NO_SPAN, Span
from broker.wire import NO_RUN, Failed, FailureCode, Job
from topology.class_queue import Entry

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
    arrived_at: float = field(default_factory=time.monotonic)
    queued_at: float = 0.0
    notified: tuple[str, int] | None = None  # the reason and position last sent to the reader
    notify_after: float = 0.0  # when a new position or estimate may be sent
    promised_start: float | None = None  # as last sent to the reader
    first_estimate: tuple[float, float] | None = None  # when it was made, seconds
    span: Span = NO_SPAN  # its stay at this node

    @classmethod
    def of(cls, job: Job, delivery: Delivery) -> "PendingJob":
        """The job as it has just arrived."""
        return cls(without_content(job, delivery), delivery, expiry(job))

    def whole_job(self) -> Job:
        """The job with its content."""
        return with_content(self.job, self.delivery)

    def job_for_parent(self) -> Job:
        """The job as it goes back to the parent."""
        return self._sent_on(self.job.trail, self.job.waits)

    def job_from(self, node: str) -> Job:
        """The job as `node` forwards it, or makes it a dead letter."""
        return self._sent_on(*self.way_to(node))

    def _sent_on(self, trail: tuple[str, ...], waits: tuple[float, ...]) -> Job:
        """With what is left of its time, and in this node's span if it has one."""
        job = self.whole_job()
        return msgspec.structs.replace(
            job,
            trail=trail,
            waits=waits,
            seconds_left=time_left(self.expires),
            deadline=None,
            traceparent=self.span.traceparent or job.traceparent,
        )

    def way_to(self, node: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The nodes on the job's way, this one last, and the seconds that it waited at each."""
        former, waits = self.job.trail, self.job.waits[: len(self.job.trail)]
        unknown = (0.0,) * (len(former) - len(waits))  # from nodes of the former release
        waited = round(time.monotonic() - self.arrived_at, 3)
        return (*former, node)[-MAX_TRAIL:], (*waits, *unknown, waited)[-MAX_TRAIL:]

    def failed(self, code: FailureCode, message: str) -> Failed:
        """The last frame of the job if it fails before it has run."""
        return Failed(request_id=self.job.request_id, seq=NO_RUN, code=code, message=message)


def without_content(job: Job, delivery: Delivery) -> Job:
    """The job as it waits. Either its content or the delivery's body is dropped."""
    if len(delivery.body) < LARGE_BYTES:
        delivery.body = b""
        return job
    return msgspec.structs.replace(
        job,
        messages=None,
        prompt=None,
        prompt_ids=(),
        pooling=None,
        tools=(),
        template_arguments="",
        sampling=msgspec.structs.replace(job.sampling, grammar=None),
        delivered="",
        delivered_ids=(),
        delivered_tokens=0,
    )


def with_content(job: Job, delivery: Delivery) -> Job:
    """The whole job again. While it waits nothing else of it changes than what is kept here."""
    if not delivery.body:
        return job
    return msgspec.structs.replace(
        decode(delivery.body, Job), restarted=job.restarted, job_class=job.job_class
    )
