"""What is stored of an answer, whatever it belongs to."""

import random

import msgspec
from django.db import models

from api.answers import process
from api.http.parsing import storable
from api.storage.records import Record
from broker.wire import DecodeError, Failed, FailureCode, Finished, Job, decode, encode

ATTEMPTS_A_TAKEOVER = (
    1000  # a stream numbers its attempts from its job's: far more than it will ever need
)


class Status(models.TextChoices):
    """Where an answer stands."""

    DONE = "done"
    STREAMING = "streaming"
    STOPPED = "stopped"
    FAILED = "failed"


class StoredAnswer(Record):
    """An answer that outlives the API process that writes it.

    While it streams, `owner` names that process ("" for none), `touched` is its heartbeat, and `job` is what another
    process needs to go on from `content`: the wire job as JSON, with its seed, so that the same text comes again.
    """

    content = models.TextField(blank=True)
    ids = models.JSONField(
        default=list
    )  # the tokens that `content` was made of, as far as the engine told them
    status = models.CharField(max_length=16, choices=Status, default=Status.DONE, db_index=True)
    error = models.TextField(null=True, blank=True)
    error_code = models.CharField(max_length=16, blank=True)
    retryable = models.BooleanField(default=False)
    finish_reason = models.CharField(max_length=16, null=True, blank=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    # Oldest ones of the job that the node left out. A process of the former version may insert rows beside this one.
    omitted_messages = models.PositiveIntegerField(default=0, db_default=0)
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
        """Tells the answer from all other stored ones."""
        return self._meta.label, self.pk

    @property
    def attempt(self) -> int:
        """The first attempt of the present owner: higher than any of a former one."""
        return self.takeovers * ATTEMPTS_A_TAKEOVER + 1

    def start(self, job: Job) -> Job:
        """Makes this the answer that this process begins to write; returns the job, now with a seed. Not stored yet."""
        job = _seeded(job)
        self.request_id, self.job = job.request_id, encode(job)
        self.owner, self.status = process.identity(), Status.STREAMING
        return job

    def job_to_resume(self) -> Job | None:
        """The job, from where the text stands; None if it is not known any more."""
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
            completion_tokens=self.completion_tokens,
            omitted_messages=self.omitted_messages,
        )


def _seeded(job: Job) -> Job:
    if job.sampling.seed is not None:
        return job
    sampling = msgspec.structs.replace(job.sampling, seed=random.getrandbits(63))
    return msgspec.structs.replace(job, sampling=sampling)
