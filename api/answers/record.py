"""What is stored of an answer, whatever it belongs to."""

import random

import msgspec
from django.db import models

from api import process
from broker.wire import DecodeError, Job, decode, encode

ATTEMPTS_A_TAKEOVER = 1000  # a stream numbers its attempts from its job's: far more than it will ever need


class Status(models.TextChoices):
    """Where an answer stands."""

    DONE = "done"
    STREAMING = "streaming"
    STOPPED = "stopped"
    FAILED = "failed"


class StoredAnswer(models.Model):
    """An answer that outlives the API process that writes it.

    While it streams, `owner` names that process ("" for none), `touched` is its heartbeat, and `job` is what another
    process needs to go on from `content`: the wire job as JSON, with its seed, so that the same text comes again.
    """

    content = models.TextField(blank=True)
    ids = models.JSONField(default=list)  # the tokens that `content` was made of, as far as the engine told them
    status = models.CharField(max_length=16, choices=Status, default=Status.DONE, db_index=True)
    error = models.TextField(null=True, blank=True)
    error_code = models.CharField(max_length=16, blank=True)
    retryable = models.BooleanField(default=False)
    finish_reason = models.CharField(max_length=16, null=True, blank=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    request_id = models.CharField(max_length=64, blank=True)
    job = models.BinaryField(null=True)
    owner = models.CharField(max_length=128, blank=True)
    takeovers = models.PositiveIntegerField(default=0)
    created = models.DateTimeField(auto_now_add=True)
    touched = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True

    @property
    def key(self) -> tuple[str, int]:
        """Names the answer among all stored ones."""
        return self._meta.label, self.pk

    @property
    def attempt(self) -> int:
        """The first attempt of the present owner: higher than any of a former one."""
        return first_attempt(self.takeovers)

    def start(self, job: Job) -> Job:
        """Makes this the answer that this process begins to write; returns the job, now with a seed. Not stored yet."""
        job = _seeded(job)
        self.request_id, self.job = job.request_id, encode(job)
        self.owner, self.status = process.identity(), Status.STREAMING
        return job

    def job_to_go_on(self) -> Job | None:
        """The job, from where the text stands; None if it is not known any more."""
        try:
            job = decode(bytes(self.job or b""), Job)
        except DecodeError:
            return None
        return msgspec.structs.replace(job, attempt=self.attempt, delivered=self.content, delivered_ids=tuple(self.ids))


def first_attempt(takeovers: int) -> int:
    """The number of the first attempt after so many takeovers."""
    return takeovers * ATTEMPTS_A_TAKEOVER + 1


def _seeded(job: Job) -> Job:
    if job.sampling.seed is not None:
        return job
    sampling = msgspec.structs.replace(job.sampling, seed=random.getrandbits(63))
    return msgspec.structs.replace(job, sampling=sampling)
