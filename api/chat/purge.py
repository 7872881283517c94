"""Removing what was deleted an hour ago, and temporary conversations that nobody uses any more."""

import asyncio
from datetime import timedelta

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError
from django.db.models import Q
from django.utils import timezone

from api.chat.models import Conversation, Status

RESTORABLE = timedelta(hours=1)  # after a deletion
TEMPORARY = timedelta(hours=24)  # after the latest change
EVERY = 600.0  # seconds
_AT_ONCE = 100  # conversations in one transaction, so that no writer waits for long

log = structlog.get_logger("canopy.api")


async def purge_repeatedly() -> None:
    """Purges at the start and every EVERY seconds. Never ends."""
    while True:
        try:
            await _purge_all()
        except DatabaseError as error:  # fate: tried again at the next turn
            log.warning("deleted conversations are purged later", reason=str(error))
        await asyncio.sleep(EVERY)


async def _purge_all() -> None:
    removed = _AT_ONCE
    while removed == _AT_ONCE:
        removed = await purge_some()


@sync_to_async
def purge_some() -> int:
    """Removes up to _AT_ONCE conversations for good; returns how many."""
    now = timezone.now()
    deleted = Q(deleted_at__lt=now - RESTORABLE)
    unused = Q(temporary=True, updated__lt=now - TEMPORARY)
    rows = Conversation.with_deleted.filter(deleted | unused)
    rows = rows.exclude(messages__status=Status.STREAMING)
    numbers = list(rows.values_list("pk", flat=True)[:_AT_ONCE])
    Conversation.with_deleted.filter(pk__in=numbers).delete()
    return len(numbers)
