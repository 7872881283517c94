"""What operators have switched: which models take no requests, and whether prompts may be seen."""

from typing import ClassVar

from django.db import models

from api.storage.records import Record


class PausedModel(Record):
    """A model that takes no new requests."""

    model = models.CharField(max_length=255, unique=True)
    reason = models.CharField(max_length=200, blank=True)
    who = models.CharField(max_length=150)
    since = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["model"]

    def __str__(self) -> str:
        return self.model


class PromptAccess(Record):
    """Whether operators may see prompts. One row at most; none: they may not."""

    allowed = models.BooleanField(default=False)
    who = models.CharField(max_length=150)
    changed = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name_plural = "prompt access"

    def __str__(self) -> str:
        if self.allowed:
            return "operators see prompts"
        return "operators do not see prompts"
