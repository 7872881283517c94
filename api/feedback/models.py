"""A reader's opinion of an answer."""

from typing import ClassVar

from django.db import models

from api.storage.records import Record


class Feedback(Record):
    """Of the conversation's owner; one an answer, and gone with it."""

    message = models.OneToOneField(
        "chat.Message", on_delete=models.CASCADE, related_name="feedback"
    )
    good = models.BooleanField()
    note = models.TextField(blank=True)
    updated = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["-updated", "-pk"]
        verbose_name_plural = "feedback"

    def __str__(self) -> str:
        return f"{'good' if self.good else 'bad'}: {self.note[:40]}"
