"""Stored jobs in the database."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.storage.records import Record

PREFIX = "job_"


class JobStatus(models.TextChoices):
    """Where a stored job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN = (JobStatus.QUEUED, JobStatus.RUNNING)


class Delivery(models.TextChoices):
    """Where a webhook stands."""

    NONE = ""
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class StoredJob(Record):
    """A request that is answered whatever becomes of the processes. Stored before it is submitted.

    While it is open, one API process runs it: `owner` is that process's identity ("" for none),
    `touched` its heartbeat. `reply`: the endpoint's response. `webhook_due`: when to send next.
    """

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="stored_jobs"
    )
    name = models.CharField(max_length=24, unique=True)
    endpoint = models.CharField(max_length=64)
    body = models.BinaryField()
    model = models.CharField(max_length=255, blank=True)
    priority = models.CharField(max_length=16)
    status = models.CharField(
        max_length=16, choices=JobStatus, default=JobStatus.QUEUED, db_index=True
    )
    created = models.DateTimeField(auto_now_add=True)
    expires = models.DateTimeField()
    ended = models.DateTimeField(null=True, blank=True, db_index=True)
    request_id = models.CharField(max_length=64, blank=True)
    position = models.PositiveIntegerField(null=True, blank=True)  # in the queue, from 1
    starts = models.DateTimeField(null=True, blank=True)  # as estimated
    attempts = models.PositiveIntegerField(default=0)
    trail = models.JSONField(null=True, blank=True)  # the nodes on its way
    reply_status = models.PositiveIntegerField(null=True, blank=True)
    reply = models.BinaryField(null=True)
    owner = models.CharField(max_length=128, blank=True)
    touched = models.DateTimeField(auto_now_add=True)
    webhook_url = models.CharField(max_length=2000, blank=True)
    webhook_secret = models.CharField(max_length=256, blank=True)
    webhook = models.CharField(max_length=16, choices=Delivery, blank=True)
    webhook_attempts = models.PositiveIntegerField(default=0)
    webhook_due = models.DateTimeField(null=True, blank=True, db_index=True)
    webhook_error = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering: ClassVar = ["-pk"]
        indexes: ClassVar = [models.Index(fields=["user", "-id"])]

    def __str__(self) -> str:
        return self.public_id

    @property
    def public_id(self) -> str:
        """As clients name it."""
        return PREFIX + self.name

    @property
    def answer_key(self) -> str:
        """The Idempotency-Key of its answer: a second call attaches to the first one's job."""
        return f"canopy-{self.public_id}"
