"""What operators have set for a served model."""

from typing import ClassVar

from django.db import models

from api.storage.records import Record


class ModelSettings(Record):
    """The model's card on the chat page, its limits and its defaults; null: none.

    `max_tokens`: of answers whose request names no number; `most_tokens`: of any answer;
    `most_requests`: of one user at a time. The rest: where a request and its user say nothing.
    """

    model = models.CharField(max_length=255, unique=True)
    description = models.CharField(max_length=500, blank=True)
    max_tokens = models.PositiveIntegerField(null=True, blank=True)
    most_tokens = models.PositiveIntegerField(null=True, blank=True)
    most_requests = models.PositiveIntegerField(null=True, blank=True)
    temperature = models.FloatField(null=True, blank=True)
    top_p = models.FloatField(null=True, blank=True)
    top_k = models.PositiveIntegerField(null=True, blank=True)
    min_p = models.FloatField(null=True, blank=True)
    repetition_penalty = models.FloatField(null=True, blank=True)
    frequency_penalty = models.FloatField(null=True, blank=True)
    presence_penalty = models.FloatField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["model"]
        verbose_name_plural = "model settings"

    def __str__(self) -> str:
        return self.model


class AutoscaleRule(Record):
    """How many nodes a model has; see topology.autoscale.Rule. Seconds for times."""

    model = models.CharField(max_length=255, unique=True)
    least = models.PositiveIntegerField()
    most = models.PositiveIntegerField()
    target_wait = models.FloatField()
    cooldown = models.FloatField()

    class Meta:
        ordering: ClassVar = ["model"]

    def __str__(self) -> str:
        return f"{self.model}: {self.least} to {self.most} nodes"


class AutoscaledNode(Record):
    """A node that the autoscaler has started on a host, so that it may end it; also after another
    process became the recorder. `leaving`: it drains, and is ended then.
    """

    name = models.CharField(max_length=255, unique=True)
    model = models.CharField(max_length=255)
    host = models.CharField(max_length=255)
    leaving = models.BooleanField(default=False)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name
