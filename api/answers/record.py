"""What is stored of an answer, whether it belongs to a conversation or to an idempotent request."""

import random

import msgspec
from django.db import models

from api.answers import process
from api.storage.records import Record
from api.storage.text import storable
from broker.encoding import decode, encode
from broker.errors import DecodeError
from broker.wire import Failed, FailureCode, Finished, Job

ATTEMPTS_A_TAKEOVER = 1000  # more than one owner will ever make
MAX_FORMAT = 64  # characters


class Status(models.TextChoices):
    """Where an answer stands."""

    DONE = "done"
    STREAMING = "streaming"
    STOPPED = "stopped"
    FAILED = "failed"


class StoredAnswer(Record):
    """An answer that outlives the API process that writes it.

    While it streams, `owner` is the identity of that process ("" for none), `touched` its
    heartbeat, and `job` the wire job as JSON, with which another process continues from `content`.
    The job has a seed, so that the same text is generated again.
    """

    content = models.TextField(blank=True)
    ids = models.JSONField(default=list)  # the tokens of `content`, as far as the engine sent them
    status = models.CharField(max_length=16, choices=Status, default=Status.DONE, db_index=True)
    error = models.TextField(null=True, blank=True)
    error_code = models.CharField(max_length=16, blank=True)
    retryable = models.BooleanField(default=False)
    finish_reason = models.CharField(max_length=16, null=True, blank=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0, db_default=0)  # of the prompt
    completion_tokens = models.PositiveIntegerField(default=0)
    # Of the job's oldest, dropped by the node. `db_default`: during an upgrade, a process of the
    # former version inserts rows, too.
    omitted_messages = models.PositiveIntegerField(default=0, db_default=0)
    node = models.CharField(max_length=255, blank=True, default="", db_default="")  # the latest
    # How `content` marks calls of tools and reasoning; see api/requests/parts. Empty: it has none.
    tool_format = models.CharField(max_length=MAX_FORMAT, blank=True, default="", db_default="")
    reasoning_format = models.CharField(
        max_length=MAX_FORMAT, blank=True, default="", db_default=""
    )
    moved = models.PositiveIntegerField(default=0, db_default=0)  # to another node, in mid-answer
    # The nodes on the way to the latest run: [{"node", "wait_ms": how long the job waited there}].
    trail = models.JSONField(null=True, blank=True)
    ttft_ms = models.PositiveIntegerField(null=True, blank=True)  # submission to first text
    seconds = models.FloatField(default=0.0, db_default=0.0)  # first text to the end
    request_id = models.CharField(max_length=64, blank=True)
    job = models.BinaryField(null=True)
    owner = models.CharField(max_length=128, blank=True)
    takeovers = models.PositiveIntegerField(default=0)
    created = models.DateTimeField(auto_now_add=True)
    touched = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True

    @property
    def handle(self) -> tuple[str, int]:
        """Identifies the answer among all stored ones."""
        return self._meta.label, self.pk

    @property
    def attempt(self) -> int:
        """The present owner's first attempt: higher than any of a former owner."""
        return self.takeovers * ATTEMPTS_A_TAKEOVER + 1

    def start(self, job: Job) -> Job:
        """Makes this the answer to `job`, owned by this process; returns the job with a seed.

        Not stored yet.
        """
        job = _seeded(job)
        self.request_id, self.job = job.request_id, encode(job)
        self.owner, self.status = process.identity(), Status.STREAMING
        return job

    def job_to_resume(self) -> Job | None:
        """The job that continues after `content`; None if the stored one cannot be read."""
        try:
            job = decode(bytes(self.job or b""), Job)
        except DecodeError:
            return None
        return msgspec.structs.replace(
            job, attempt=self.attempt, delivered=self.content, delivered_ids=tuple(self.ids)
        )

    def fail(self, code: FailureCode, message: str, *, retryable: bool = False) -> None:
        """Ends the answer as failed. Not stored yet."""
        self.status = Status.FAILED
        self.error_code, self.error, self.retryable = code, storable(message), retryable

    def ending(self) -> Finished | Failed:
        """The last frame of an answer that has ended."""
        if self.status == Status.FAILED:
            code: FailureCode = self.error_code or "internal"
            message = self.error or "the answer failed"
            return Failed(
                request_id=self.request_id, code=code, message=message, retryable=self.retryable
            )
        return Finished(
            request_id=self.request_id,
            reason=self.finish_reason or "stop",
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            omitted_messages=self.omitted_messages,
        )


def _seeded(job: Job) -> Job:
    if job.sampling.seed is not None:
        return job
    sampling = msgspec.structs.replace(job.sampling, seed=random.getrandbits(63))
    return msgspec.structs.replace(job, sampling=sampling)
