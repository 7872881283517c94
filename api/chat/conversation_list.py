"""The list of a user's conversations: pages, folders, many at once, deletion with a way back."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from asgiref.sync import sync_to_async
from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from api.accounts.models import User
from api.chat.models import Conversation, Message, Status
from api.errors import ApiError

PAGE = 50
LONGEST_PAGE = 1000  # also of one that goes on to a certain conversation
MOST_FOLDERS = 200  # listed

Action = Literal["delete", "restore", "archive", "unarchive", "move"]

_CURSOR = re.compile(r"([01])\.(\d{1,17})\.(\d{1,19})")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which conversations: those of a folder ("" for none of them), or the archived ones."""

    folder: str = ""
    archived: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the list. `next`: where the following page begins; None at the end."""

    conversations: list[Conversation]
    next: str | None


def _running() -> Exists:
    streaming = Message.objects.filter(conversation=OuterRef("pk"), status=Status.STREAMING)
    return Exists(streaming)


def listed(user: User) -> QuerySet[Conversation]:
    """The user's conversations that lists show, each with whether an answer runs in it."""
    rows = Conversation.objects.filter(user=user, temporary=False)
    return rows.annotate(running=_running())


async def summary(user: User, number: int) -> Conversation | None:
    """The user's conversation as the list shows it; None if the list does not have it."""
    return await listed(user).filter(pk=number).afirst()


@sync_to_async
def page(
    user: User, selection: Selection, cursor: str | None, limit: int, through: int | None
) -> Page:
    """A page of the list, pinned ones first, then the newest.

    `through`: the page goes on to this conversation, as far as LONGEST_PAGE allows. Raises
    ApiError 400 for a cursor that is none.
    """
    rows = listed(user).order_by("-pinned", "-updated", "-pk")
    if selection.archived:
        rows = rows.filter(archived=True)
    else:
        rows = rows.filter(archived=False, folder=selection.folder)
    if cursor is not None:
        rows = rows.filter(_after(*_parse(cursor)))
    if through is not None:
        limit = max(limit, min(_place(rows, through), LONGEST_PAGE))
    page = list(rows[: limit + 1])
    following = None
    if len(page) > limit:
        following = _cursor_of(page[limit - 1])
    return Page(page[:limit], following)


def _place(rows: QuerySet[Conversation], number: int) -> int:
    """How many rows there are up to this one; 0 if it is not among them."""
    row = rows.filter(pk=number).first()
    if row is None:
        return 0
    behind = _after(row.pinned, row.updated, row.pk)
    return rows.exclude(behind).count()


def _after(pinned: bool, updated: datetime, number: int) -> Q:
    older = Q(updated__lt=updated) | Q(updated=updated, pk__lt=number)
    if pinned:
        return Q(pinned=False) | older
    return Q(pinned=False) & older


def _cursor_of(row: Conversation) -> str:
    microseconds = (row.updated - _EPOCH) // timedelta(microseconds=1)
    return f"{int(row.pinned)}.{microseconds}.{row.pk}"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _parse(cursor: str) -> tuple[bool, datetime, int]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        message = "cursor: this is not what a former page said"
        raise ApiError(400, message, field="cursor", code="invalid_value")
    pinned, microseconds, number = match.groups()
    updated = _EPOCH + timedelta(microseconds=int(microseconds))
    return pinned == "1", updated, min(int(number), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Counts:
    """The user's folders by name with the number of their conversations, and of archived ones."""

    folders: list[tuple[str, int]]
    archived: int


@sync_to_async
def counts(user: User) -> Counts:
    """What lists show beside the conversations."""
    rows = Conversation.objects.filter(user=user, temporary=False)
    in_folders = rows.filter(archived=False).exclude(folder="").order_by("folder")
    folders = in_folders.values_list("folder").annotate(Count("pk"))
    return Counts(list(folders[:MOST_FOLDERS]), rows.filter(archived=True).count())


@sync_to_async
def discard(conversation: Conversation) -> None:
    """Removes a conversation that never began."""
    Conversation.objects.filter(pk=conversation.pk).delete()


@dataclass(frozen=True, slots=True)
class Deleted:
    """Conversations that were deleted, and their answers that are still written."""

    numbers: list[int]
    unfinished: list[Message]


@sync_to_async
@transaction.atomic
def delete(user: User, numbers: Sequence[int]) -> Deleted:
    """Deletes the user's conversations, so that `restore` can bring them back for a while."""
    rows = Conversation.objects.select_for_update().filter(user=user, pk__in=numbers)
    deleted = list(rows.values_list("pk", flat=True))
    Conversation.objects.filter(pk__in=deleted).update(deleted_at=timezone.now())
    streaming = Message.objects.filter(conversation__in=deleted, status=Status.STREAMING)
    return Deleted(deleted, list(streaming))


@sync_to_async
def restore(user: User, numbers: Sequence[int]) -> int:
    """Brings deleted conversations back; returns how many there still were."""
    rows = Conversation.with_deleted.filter(user=user, pk__in=numbers, deleted_at__isnull=False)
    return rows.update(deleted_at=None)


@sync_to_async
def change_many(user: User, numbers: Sequence[int], changes: dict[str, Any]) -> int:
    """Sets fields of the user's conversations; returns how many there are."""
    return Conversation.objects.filter(user=user, pk__in=numbers).update(**changes)
