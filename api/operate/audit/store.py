"""Every query on the audit log, and its bounds."""

import asyncio
import getpass
import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError
from django.db.models import Q
from django.utils import timezone

from api.operate.audit.models import AuditEntry
from api.storage.text import storable

RETENTION = timedelta(days=400)
MAX_ENTRIES = 100_000
PURGE_EVERY = 600.0  # seconds
_AT_ONCE = 1_000  # entries deleted in one transaction, so that no writer waits for long

log = structlog.get_logger("canopy.api")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which entries; empty or None: whatever they are. `text`: a part of target or detail."""

    who: str = ""
    action: str = ""
    text: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, newest first. `next`: where the following page begins; None at the end."""

    entries: list[AuditEntry]
    next: int | None


@sync_to_async
def page(selection: Selection, before: int | None, limit: int) -> Page:
    """The newest entries with a key below `before`."""
    rows = AuditEntry.objects.filter(_condition(selection))
    if before is not None:
        rows = rows.filter(pk__lt=before)
    entries = list(rows[: limit + 1])
    following = None
    if len(entries) > limit:
        following = entries[limit - 1].pk
    return Page(entries[:limit], following)


def _condition(selection: Selection) -> Q:
    condition = Q()
    if selection.who:
        condition &= Q(who=selection.who)
    if selection.action:
        condition &= Q(action=selection.action)
    if selection.text:
        condition &= Q(target__icontains=selection.text) | Q(detail__icontains=selection.text)
    if selection.since is not None:
        condition &= Q(when__gte=selection.since)
    if selection.until is not None:
        condition &= Q(when__lt=selection.until)
    return condition


@sync_to_async
def actions() -> list[str]:
    """The names of the actions that the log has, for a filter."""
    rows = AuditEntry.objects.order_by("action").values_list("action", flat=True)
    return list(rows.distinct())


async def record_system(who: str, action: str, target: str, detail: str, result: str) -> None:
    """Stores what the service did by itself, under a name that no person has."""
    await AuditEntry.objects.acreate(
        who=who,
        action=cut(action, "action"),
        target=cut(target, "target"),
        detail=cut(detail, "detail"),
        result=cut(result, "result"),
    )


def command_user() -> str:
    """Who acts on the command line of this machine."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # in a container a user may have a number alone
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()} via command line"


async def begin_command(action: str, target: str) -> AuditEntry:
    """Stores what somebody begins on the command line of this machine; `finish` it."""
    return await AuditEntry.objects.acreate(
        who=cut(command_user(), "who"),
        action=cut(action, "action"),
        target=cut(target, "target"),
        result="began",
    )


async def finish(entry: AuditEntry, result: str) -> None:
    """Stores how an action ended, also one that outlives its request."""
    await AuditEntry.objects.filter(pk=entry.pk).aupdate(result=cut(result, "result"))


def cut(text: str, field: str) -> str:
    """The text as that field of an entry can hold it."""
    length: int = AuditEntry._meta.get_field(field).max_length
    return storable(text[:length])


async def purge_repeatedly() -> None:
    """Purges at the start and every PURGE_EVERY seconds. Never ends."""
    while True:
        try:
            while await purge_some() == _AT_ONCE:
                pass
        except DatabaseError as error:  # fate: tried again at the next turn
            log.warning("old audit entries are removed later", reason=str(error))
        await asyncio.sleep(PURGE_EVERY)


@sync_to_async
def purge_some() -> int:
    """Removes up to _AT_ONCE entries beyond the bounds; returns how many."""
    surplus = Q(when__lt=timezone.now() - RETENTION)
    newest_too_many = AuditEntry.objects.values_list("pk", flat=True)[MAX_ENTRIES:][:1].first()
    if newest_too_many is not None:
        surplus |= Q(pk__lte=newest_too_many)
    rows = AuditEntry.objects.filter(surplus).values_list("pk", flat=True)
    deleted, _ = AuditEntry.objects.filter(pk__in=list(rows[:_AT_ONCE])).delete()
    return int(deleted)
