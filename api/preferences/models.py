"""Instructions and sampling, of a user, of a conversation, and as named presets."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.storage.records import Record


class AnswerStyle(Record):
    """Instructions for the model and how it samples. Null: what is set one level above."""

    instructions = models.TextField(blank=True)
    temperature = models.FloatField(null=True, blank=True)
    top_p = models.FloatField(null=True, blank=True)
    max_tokens = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        abstract = True


class UserStyle(AnswerStyle):
    """Of all of a user's conversations."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="style"
    )


class ConversationStyle(AnswerStyle):
    """Of one conversation."""

    conversation = models.OneToOneField(
        "chat.Conversation", on_delete=models.CASCADE, related_name="style"
    )
    # The name of the preset that it is; empty for one of its own.
    preset = models.CharField(max_length=80, blank=True, default="", db_default="")


class Preset(AnswerStyle):
    """A named one, to be applied to conversations."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="presets"
    )
    name = models.CharField(max_length=80)

    class Meta:
        ordering: ClassVar = ["name", "pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "name"], name="a_users_preset_has_one_name")
        ]

    def __str__(self) -> str:
        return self.name
