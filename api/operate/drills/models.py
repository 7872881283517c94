"""The latest drills, for every API process to show."""

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from api.storage.records import Record


class State(models.TextChoices):
    """Where a drill is. FAILED: nothing is known about its result, and `note` says why."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Drill(Record):
    """One node that was killed. The counts are those of broker.drill_messages.DrillCounts.

    `processes`: API processes that counted; `updated`: a sign of life of the one that conducts it;
    `slowest`, `back`: seconds from the kill to the next token of the last job, and until the node
    served again; None: not known.
    """

    node = models.CharField(max_length=63)
    host = models.CharField(max_length=63)
    by = models.CharField(max_length=150)
    state = models.CharField(max_length=10, choices=State.choices, default=State.RUNNING)
    note = models.CharField(max_length=300, blank=True)
    began = models.DateTimeField(default=timezone.now)
    updated = models.DateTimeField(default=timezone.now)
    processes = models.PositiveIntegerField(default=0)
    affected = models.PositiveIntegerField(default=0)
    moved = models.PositiveIntegerField(default=0)
    returned = models.PositiveIntegerField(default=0)
    lost = models.PositiveIntegerField(default=0)
    left = models.PositiveIntegerField(default=0)
    open = models.PositiveIntegerField(default=0)
    waiting = models.PositiveIntegerField(default=0)
    slowest = models.FloatField(null=True)
    back = models.FloatField(null=True)

    class Meta:
        ordering: ClassVar = ["-pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["state"], condition=Q(state="running"), name="one_drill_at_a_time"
            )
        ]

    def __str__(self) -> str:
        return f"{self.node}, {self.state}"
