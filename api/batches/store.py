"""Every query on batches. What an owner changes, it changes only while the lease is its own."""

import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import models, transaction
from django.db.models import F
from django.utils import timezone

from api.accounts.models import User
from api.answers import process
from api.answers.store import orphaned
from api.batches.models import OPEN, PREFIX, Batch, BatchStatus
from api.batches.results import Counts, Kind
from api.errors import ApiError
from api.files.models import StoredFile
from api.files.store import no_such_file

MOST_OPEN = 20  # batches of one user
KEPT = timedelta(days=90)  # after its creation, a batch that has ended is forgotten
RETRY_AFTER = 60  # seconds


@sync_to_async
@transaction.atomic
def create(user: User, file: StoredFile, length: timedelta, **fields: Any) -> Batch:
    """A new batch.

    Raises ApiError 429 if the user has too many open ones, 401 and 404 if user or file are gone.
    """
    if not User.objects.select_for_update().filter(pk=user.pk):
        raise ApiError(401, "this account was removed", code="account_removed")
    if not StoredFile.objects.select_for_update().filter(pk=file.pk):
        raise no_such_file(file.public_id, "input_file_id")  # deleted a moment ago
    if Batch.objects.filter(user=user, status__in=OPEN).count() >= MOST_OPEN:
        raise ApiError(
            429,
            f"you have {MOST_OPEN} open batches, the most of one user: try again when one has "
            "ended, or cancel one (POST /v1/batches/ID/cancel)",
            code="too_many_batches",
            params={"most": MOST_OPEN},
            headers={"Retry-After": str(RETRY_AFTER)},
        )
    return Batch.objects.create(
        user=user,
        name=secrets.token_hex(12),
        input=file,
        input_content=file.content,
        expires=timezone.now() + length,
        **fields,
    )


async def find(user: User, public_id: str, field: str = "batch_id") -> Batch:
    """One of the user's batches. Raises ApiError 404, about `field` of the request."""
    name = public_id.removeprefix(PREFIX)[:24].replace("\x00", "")
    batch = await Batch.objects.filter(user=user, name=name).afirst()
    if batch is None:
        message = f"there is no batch {public_id[:100]!r} of yours"
        raise ApiError(404, message, field=field, code="not_found")
    return batch


async def listed(user: User, after: Batch | None, limit: int) -> list[Batch]:
    """The user's batches before that one, newest first."""
    rows = Batch.objects.filter(user=user)
    if after is not None:
        rows = rows.filter(pk__lt=after.pk)
    return [row async for row in rows.order_by("-pk")[:limit]]


async def cancel(batch: Batch) -> None:
    """Has the batch end without the rest of its lines. Raises ApiError 409 if it has ended."""
    running = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
    moments = {**batch.moments, "cancelling_at": int(time.time())}
    rows = Batch.objects.filter(pk=batch.pk, status__in=running)
    if await rows.aupdate(status=BatchStatus.CANCELLING, moments=moments):
        return
    await batch.arefresh_from_db()
    if batch.status not in (BatchStatus.CANCELLING, BatchStatus.FINALIZING):
        message = f"this batch cannot be cancelled: it is {batch.status}"
        raise ApiError(409, message, code="not_cancellable")


# ---- the owner's


@sync_to_async
def orphans(mine: Sequence[int], limit: int) -> list[Batch]:
    """Open batches that no process runs, oldest first."""
    rows = Batch.objects.filter(status__in=OPEN)
    lost = rows.filter(orphaned(rows)).exclude(pk__in=mine)
    return list(lost.order_by("pk")[:limit])


async def claim(batch: Batch) -> Batch | None:
    """Makes this process the owner; None if another was faster or the former owner is back."""
    now = timezone.now()
    unchanged = Batch.objects.filter(
        pk=batch.pk, status__in=OPEN, owner=batch.owner, touched=batch.touched
    )
    owner = process.identity()
    if not await unchanged.aupdate(owner=owner, touched=now, lease=F("lease") + 1):
        return None
    return await _with_user(batch)


async def _with_user(batch: Batch) -> Batch | None:
    return await Batch.objects.select_related("user").filter(pk=batch.pk).afirst()


def _own(batch: Batch) -> "models.QuerySet[Batch]":
    return Batch.objects.filter(pk=batch.pk, owner=process.identity(), lease=batch.lease)


async def heartbeat(batch: Batch, counts: Counts) -> bool:
    """Stores progress, and reads what has changed; False if the batch is another's, or gone.

    `batch.user` is read again, too: it may have been disabled.
    """
    alive = await _own(batch).aupdate(
        touched=timezone.now(), completed=counts.completed, failed=counts.failed
    )
    if not alive:
        return False
    fresh = await _with_user(batch)
    if fresh is None:
        return False
    batch.status, batch.moments, batch.user = fresh.status, fresh.moments, fresh.user
    return True


async def advance(batch: Batch, status: str, **fields: Any) -> bool:
    """The batch has come further; False if it is another's, or changed by its user meanwhile."""
    moments = {**batch.moments, f"{status}_at": int(time.time())}
    rows = _own(batch).filter(status=batch.status)
    if not await rows.aupdate(status=status, moments=moments, touched=timezone.now(), **fields):
        return False
    batch.status, batch.moments = status, moments
    return True


@sync_to_async
@transaction.atomic
def finish(batch: Batch, status: str, counts: Counts, files: Mapping[Kind, StoredFile]) -> bool:
    """Ends the batch with its files, all or nothing; False if it is another's."""
    moments = {**batch.moments, f"{status}_at": int(time.time())}
    contents = {kind: file.content for kind, file in files.items()}
    ended = (
        _own(batch)
        .filter(status=batch.status)
        .update(
            status=status,
            moments=moments,
            completed=counts.completed,
            failed=counts.failed,
            output_content=contents.get("output", ""),
            error_content=contents.get("error", ""),
        )
    )
    if not ended:
        return False
    StoredFile.objects.bulk_create(files.values())
    batch.status, batch.moments = status, moments
    return True


async def release_all() -> None:
    """Gives up the ownership of all batches: another process takes them over at once."""
    mine = Batch.objects.filter(status__in=OPEN, owner=process.identity())
    await mine.aupdate(owner="")


@sync_to_async
def open_names() -> set[str]:
    """The batches whose results are still being written."""
    return set(Batch.objects.filter(status__in=OPEN).values_list("name", flat=True))


async def forget_old() -> int:
    """Deletes batches that ended long ago; returns how many."""
    old = Batch.objects.filter(created__lt=timezone.now() - KEPT).exclude(status__in=OPEN)
    deleted, _ = await old.adelete()
    return int(deleted)
