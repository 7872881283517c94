"""Batches in the database. What their lines said is in files (results.py)."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.files.models import StoredFile
from api.storage.records import Record

PREFIX = "batch_"


class BatchStatus(models.TextChoices):
    """Where a batch stands; OpenAI's names."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN = (
    BatchStatus.VALIDATING,
    BatchStatus.IN_PROGRESS,
    BatchStatus.FINALIZING,
    BatchStatus.CANCELLING,
)


class Batch(Record):
    """A batch of a user. While it is open, one API process runs it.

    `owner`: that process's identity ("" for none), `touched` its heartbeat, `lease` how many owners
    there were: what a former owner still writes counts no more. `moments`: Unix seconds by status.
    """

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="batches"
    )
    name = models.CharField(max_length=24, unique=True)
    input = models.ForeignKey(
        StoredFile, on_delete=models.SET_NULL, null=True, related_name="batches"
    )
    input_content = models.CharField(max_length=32)  # also when the file is deleted
    endpoint = models.CharField(max_length=64)
    window = models.CharField(max_length=8)
    metadata = models.JSONField(null=True, blank=True)
    status = models.CharField(
        max_length=16, choices=BatchStatus, default=BatchStatus.VALIDATING, db_index=True
    )
    model = models.CharField(max_length=255, blank=True)  # of the first line
    total = models.PositiveIntegerField(default=0)  # lines
    completed = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    errors = models.JSONField(null=True, blank=True)  # why it failed
    output_content = models.CharField(max_length=32, blank=True)
    error_content = models.CharField(max_length=32, blank=True)
    output_seconds = models.PositiveIntegerField(null=True, blank=True)  # to keep its files
    created = models.DateTimeField(auto_now_add=True)
    expires = models.DateTimeField()
    moments = models.JSONField(default=dict)
    owner = models.CharField(max_length=128, blank=True)
    touched = models.DateTimeField(auto_now_add=True)
    lease = models.PositiveIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["-pk"]
        verbose_name_plural = "batches"
        indexes: ClassVar = [models.Index(fields=["user", "-id"])]

    def __str__(self) -> str:
        return self.public_id

    @property
    def public_id(self) -> str:
        """As clients name it."""
        return PREFIX + self.name
