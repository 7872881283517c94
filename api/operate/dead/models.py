"""Replays of dead letters, for every API process to show."""

from typing import ClassVar

from django.db import models
from django.utils import timezone

from api.storage.records import Record


class State(models.TextChoices):
    """Where a replay is. Its letter was dropped if it was answered, and is back if it failed."""

    WAITING = "waiting"
    RUNNING = "running"
    ANSWERED = "answered"
    FAILED = "failed"


class DeadReplay(Record):
    """One letter's job that an operator runs again.

    `updated`: a sign of life of the process that runs it, until it ends. `answer`: the beginning.
    `given`: it stands where its user's failed one stood.
    """

    letter = models.CharField(max_length=255)
    request_id = models.CharField(max_length=64)
    model = models.CharField(max_length=255)
    user = models.CharField(max_length=255)
    by = models.CharField(max_length=150)
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    tokens = models.BigIntegerField(default=0)
    node = models.CharField(max_length=255, blank=True)
    error = models.CharField(max_length=1000, blank=True)
    answer = models.TextField(blank=True)
    given = models.BooleanField(default=False, db_default=False)
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering: ClassVar = ["-pk"]

    def __str__(self) -> str:
        return f"{self.letter}, {self.state}"
