"""Conversations and their messages."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from api.answers.record import Status, StoredAnswer
from api.chat import attachments
from api.requests.parts import sendable
from api.storage.records import Record

__all__ = ["UNTITLED", "Conversation", "Message", "Role", "Status"]

UNTITLED = "New conversation"


class TitledBy(models.TextChoices):
    """Who gave a conversation its title, if not its first message."""

    MODEL = "model"
    USER = "user"


class NotDeleted(models.Manager["Conversation"]):
    """All but conversations that were deleted and can still be restored."""

    def get_queryset(self) -> models.QuerySet["Conversation"]:
        """See the class."""
        return super().get_queryset().filter(deleted_at__isnull=True)


class Conversation(Record):
    """A dialogue of one user with one model, which may be changed.

    `folder`: its name; empty for none. `temporary`: not listed, and purged soon. `deleted_at`: when
    it was deleted; until it is purged (api/chat/purge.py) it can be restored, and `objects` leaves
    it out. `titled_by`: who gave the title; empty for its first message.

    The values by `db_default` are for processes of the former release, which insert rows, too.
    """

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations"
    )
    title = models.CharField(max_length=200, default=UNTITLED)
    model = models.CharField(max_length=200)
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)
    # The leaf of the branch that is shown, on every device; see api/chat/tree.py.
    head = models.ForeignKey(
        "chat.Message",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
    )
    pinned = models.BooleanField(default=False, db_default=False)
    archived = models.BooleanField(default=False, db_default=False)
    folder = models.CharField(max_length=80, blank=True, default="", db_default="")
    temporary = models.BooleanField(default=False, db_default=False)
    titled_by = models.CharField(
        max_length=8, choices=TitledBy, blank=True, default="", db_default=""
    )
    deleted_at = models.DateTimeField(null=True, blank=True, db_index=True)

    objects = NotDeleted()
    with_deleted: ClassVar = models.Manager["Conversation"]()

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
    """One turn. The status of a user's message is always done.

    Messages are a tree: an edited question and a second answer are siblings of the first ones.
    """

    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="messages"
    )
    role = models.CharField(max_length=16, choices=Role)
    # The message that it follows; null for a root, and in rows of the former release.
    parent = models.ForeignKey(
        "self",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        editable=False,
        related_name="children",
    )
    is_root = models.BooleanField(default=False, db_default=False, editable=False)
    # Of an answer: which model gives it; empty in rows of the former release.
    model = models.CharField(max_length=200, blank=True, default="", db_default="")
    # Of an answer: the first message in its job; null if that is the conversation's first one.
    first_sent = models.BigIntegerField(null=True, editable=False)
    # Of an answer: the other answer that it stands beside, until the reader keeps one of them.
    beside = models.BigIntegerField(null=True, blank=True, editable=False)
    # Of a question: texts, see api/chat/attachments.py; null for none.
    attachments = models.JSONField(null=True, blank=True, editable=False)

    class Meta:
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return f"{self.role}: {self.content[:40]}"

    @property
    def prompt(self) -> str:
        """The message as the model reads it, with its attachments."""
        content = sendable(self.content, self.reasoning_format)
        return attachments.prompt(content, self.attachments)


class Share(Record):
    """A branch of a conversation as it was when its link was made, for everybody with the link.

    `digest`: SHA-256 of the link's token. `content`: the title and the messages as JSON, without
    anything that was sent to the model beside them.
    """

    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="shares")
    digest = models.CharField(max_length=64, unique=True)
    content = models.TextField()
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-pk"]

    def __str__(self) -> str:
        return f"share of {self.conversation_id}"
