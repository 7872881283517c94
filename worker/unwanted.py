"""The jobs whose answers nobody wants any more, as far as this node has heard.

A message about a job may come before the job itself, so each is remembered for a while.
"""

from dataclasses import dataclass

from broker.deadline import has_passed
from broker.wire import NO_RUN, Cancel, Failed, Finished, Job, Supersede
from worker.pending_job import PendingJob
from worker.recent_attempts import RecentAttempts

ENDED_BY_OPERATOR = "an operator cancelled this request"
_EXPIRED = "the deadline of the request passed while it waited"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Nobody wants this job's answer. `final`: its last frame; None if nobody reads that, too."""

    final: Finished | Failed | None = None


class Unwanted:
    """Remembers what was cancelled, superseded or ended, and which readers are gone."""

    def __init__(self) -> None:
        self._cancelled = RecentAttempts()  # by (request, user)
        self._superseded = RecentAttempts()  # by request
        self._ended_by_operator = RecentAttempts()  # by request
        self._gone_readers = RecentAttempts()  # reply queues

    @property
    def cancellations(self) -> int:
        """How many are remembered."""
        return len(self._cancelled)

    def cancel(self, message: Cancel) -> None:
        self._cancelled.add((message.request_id, message.user), message.before)

    def supersede(self, message: Supersede) -> None:
        self._superseded.add(message.request_id, message.attempt)

    def end_for_operator(self, request_id: str) -> None:
        self._ended_by_operator.add(request_id)

    def reader_gone(self, queue: str) -> None:
        self._gone_readers.add(queue)

    def forget_readers(self) -> None:
        """A broker that is cut off from its cluster reports every reader gone before it closes."""
        self._gone_readers.clear()

    def verdict(self, pending: PendingJob) -> Verdict | None:
        """None if somebody wants the answer of this waiting job."""
        job = pending.job
        if job.reply_to in self._gone_readers:
            return Verdict()
        if self._cancelled and self._is_cancelled(job):
            final = Finished(request_id=job.request_id, seq=NO_RUN, reason="cancelled")
            return Verdict(final)
        if job.request_id in self._ended_by_operator:
            return Verdict(pending.failed("cancelled", ENDED_BY_OPERATOR))
        if self._superseded and self._is_superseded(job):
            return Verdict()
        if has_passed(pending.expires):
            return Verdict(pending.failed("expired", _EXPIRED))
        return None

    def _is_superseded(self, job: Job) -> bool:
        return not job.restarted and self._superseded.covers(job.request_id, job.attempt)

    def _is_cancelled(self, job: Job) -> bool:
        by_anybody, by_user = (job.request_id, ""), (job.request_id, job.user)
        return self._cancelled.covers(by_anybody, job.attempt) or self._cancelled.covers(
            by_user, job.attempt
        )
