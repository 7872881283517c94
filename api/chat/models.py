"""Conversations and their messages."""

from typing import ClassVar

from django.conf import settings
from django.db import models

UNTITLED = "New conversation"


class Conversation(models.Model):
    """A dialogue of one user with one model (which may be changed on the way)."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations")
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


class Status(models.TextChoices):
    """Where a message stands; only an answer is ever anything else than done."""

    DONE = "done"
    STREAMING = "streaming"
    STOPPED = "stopped"
    FAILED = "failed"


class Message(models.Model):
    """One turn. While it streams, `owner` names the API process that writes it and `touched` is its heartbeat."""

    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    role = models.CharField(max_length=16, choices=Role)
    content = models.TextField(blank=True)
    status = models.CharField(max_length=16, choices=Status, default=Status.DONE)
    error = models.TextField(null=True, blank=True)
    finish_reason = models.CharField(max_length=16, null=True, blank=True)
    completion_tokens = models.PositiveIntegerField(default=0)
    request_id = models.CharField(max_length=64, blank=True)
    owner = models.CharField(max_length=128, blank=True)
    created = models.DateTimeField(auto_now_add=True)
    touched = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["conversation"], condition=models.Q(status="streaming"), name="one_answer_at_a_time"
            )
        ]

    def __str__(self) -> str:
        return f"{self.role}: {self.content[:40]}"
