"""Storing conversations that come from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from asgiref.sync import sync_to_async
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from api.accounts.models import User
from api.chat.models import Conversation, Message, TitledBy
from api.plans.store import check_conversations
from api.transfer.schemas import ImportedConversation, ImportedMessage

_BATCH = 200  # rows in one statement


@dataclass(frozen=True, slots=True)
class Report:
    """What came in. `known`: conversations that were there already, by title and time."""

    conversations: int
    messages: int
    known: int


@sync_to_async
def store(
    user: User, conversations: Sequence[ImportedConversation], model: str, most: int | None
) -> Report:
    """Adds the conversations to the user's. `model`: for those that name none.

    `most`: conversations that the user may have; None: any number. Raises ApiError 429 before
    anything is stored, unless others are added at the same time.
    """
    if most is not None:
        new = sum(not _is_known(user, imported) for imported in conversations)
        with transaction.atomic():
            check_conversations(user, most, new)
    added, messages, known = 0, 0, 0
    for imported in conversations:
        with transaction.atomic():
            if _is_known(user, imported):
                known += 1
            else:
                check_conversations(user, most)
                _store(user, imported, model)
                added += 1
                messages += len(imported.messages)
    return Report(added, messages, known)


def _is_known(user: User, imported: ImportedConversation) -> bool:
    if imported.created is None:
        return False
    rows = Conversation.objects.filter(user=user, title=imported.title, created=imported.created)
    return rows.exists()


def _store(user: User, imported: ImportedConversation, model: str) -> None:
    conversation = Conversation.objects.create(
        user=user,
        title=imported.title,
        titled_by=TitledBy.USER,
        model=imported.model or model,
        pinned=imported.pinned,
        archived=imported.archived,
        folder=imported.folder,
    )
    rows = _add_messages(conversation, imported.messages)
    head = None
    if imported.head is not None:
        head = rows[imported.head].pk
    elif rows:
        head = conversation.messages.aggregate(Max("pk"))["pk__max"]
    now = timezone.now()
    created = _past(imported.created, now)
    updated = max(created, _past(imported.updated or imported.created, now))
    Conversation.objects.filter(pk=conversation.pk).update(
        head=head, created=created, updated=updated
    )


def _add_messages(
    conversation: Conversation, messages: Sequence[ImportedMessage]
) -> dict[str, Message]:
    """The stored messages by their names in the file."""
    now = timezone.now()
    rows: dict[str, Message] = {}
    for message in messages:
        rows[message.id] = Message(
            conversation=conversation,
            role=message.role,
            content=message.content,
            attachments=message.stored_attachments,
            model=message.model,
            is_root=message.parent is None,
            finish_reason=message.finish_reason,
        )
    # The keys of parents are known only when all rows have theirs.
    Message.objects.bulk_create(rows.values(), batch_size=_BATCH)
    for message in messages:
        row = rows[message.id]
        row.created = _past(message.created, now)
        if message.parent is not None:
            row.parent = rows[message.parent]
    Message.objects.bulk_update(rows.values(), ["parent", "created"], batch_size=_BATCH)
    return rows


def _past(moment: datetime | None, now: datetime) -> datetime:
    """A time that a file may claim: not in the future."""
    if moment is None:
        return now
    return min(moment, now)
