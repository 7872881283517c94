"""Conversations and their messages."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.answers.record import Status, StoredAnswer
from api.storage.records import Record

__all__ = ["UNTITLED", "Conversation", "Message", "Role", "Status"]

UNTITLED = "New conversation"


class Conversation(Record):
    """A dialogue of one user with one model, which may be changed."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations"
    )
    title = models.CharField(max_length=200, default=UNTITLED)
    model = models.CharField(max_length=200)
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["-updated", "-pk"]
        indexes: ClassVar = [models.Index(fields=["user", "-updated"])]

    def __str__(self) -> str:
        return self.title


class Role(models.TextChoices):
    """Who wrote a message."""

    USER = "user"
    ASSISTANT = "assistant"


class Message(StoredAnswer):
    """One turn. The status of a user's message is always done."""

    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="messages"
    )
    role = models.CharField(max_length=16, choices=Role)
    # Of an answer: the first message in its job; null if that is the conversation's first one.
    first_sent = models.BigIntegerField(null=True, editable=False)

    class Meta:
        ordering: ClassVar = ["pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["conversation"],
                condition=models.Q(status="streaming"),
                name="one_answer_at_a_time",
            )
        ]

    def __str__(self) -> str:
        return f"{self.role}: {self.content[:40]}"
