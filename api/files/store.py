"""Every query on files."""

import asyncio
from datetime import datetime, timedelta

from asgiref.sync import sync_to_async
from django.db import models, transaction
from django.utils import timezone

from api.accounts.models import User
from api.batches.models import OPEN
from api.errors import ApiError
from api.files.disk import ContentStore
from api.files.limits import FileLimits
from api.files.models import PREFIX, StoredFile

MOST_LISTED = 10_000
_AT_ONCE = 500  # expired files of one query


@sync_to_async
@transaction.atomic
def create(
    user: User,
    limits: FileLimits,
    *,
    content: str,
    filename: str,
    purpose: str,
    size: int,
    expires: datetime,
) -> StoredFile:
    """Stores an upload's row. Raises ApiError 403 beyond the user's limits, 401 for nobody."""
    if not User.objects.select_for_update().filter(pk=user.pk):
        raise ApiError(401, "this account was removed", code="account_removed")
    used = StoredFile.objects.filter(user=user).aggregate(
        files=models.Count("pk"), size=models.Sum("size", default=0)
    )
    _check_quota(limits, used["files"], used["size"], size)
    return StoredFile.objects.create(
        user=user, content=content, filename=filename, purpose=purpose, size=size, expires=expires
    )


def _check_quota(limits: FileLimits, files: int, used: int, size: int) -> None:
    if files >= limits.user_files:
        raise ApiError(
            403,
            f"you have {files} files, and the limit is {limits.user_files}: delete some first "
            "(DELETE /v1/files/ID)",
            code="too_many_files",
            params={"most": limits.user_files},
        )
    if used + size > limits.user_bytes:
        raise ApiError(
            403,
            f"this file has {size} bytes and your others {used}, and the limit of all together is "
            f"{limits.user_bytes}: delete some first (DELETE /v1/files/ID)",
            code="storage_full",
            params={"most": limits.user_bytes},
        )


async def find(user: User, public_id: str, field: str = "file_id") -> StoredFile:
    """One of the user's files. Raises ApiError 404, about `field` of the request."""
    content = public_id.removeprefix(PREFIX)[:32].replace("\x00", "")
    file = await StoredFile.objects.filter(user=user, content=content).afirst()
    if file is None:
        raise no_such_file(public_id, field)
    return file


def no_such_file(public_id: str, field: str) -> ApiError:
    """404. `field`: where the request names the file."""
    message = f"there is no file {public_id[:100]!r} of yours"
    return ApiError(404, message, field=field, code="not_found")


async def listed(
    user: User, *, purpose: str | None, after: StoredFile | None, newest_first: bool, limit: int
) -> list[StoredFile]:
    """The user's files after that one, in the order of their creation."""
    rows = StoredFile.objects.filter(user=user)
    if purpose is not None:
        rows = rows.filter(purpose=purpose)
    if after is not None:
        rows = rows.filter(pk__lt=after.pk) if newest_first else rows.filter(pk__gt=after.pk)
    return [row async for row in rows.order_by("-pk" if newest_first else "pk")[:limit]]


async def delete(file: StoredFile, contents: ContentStore) -> None:
    """Removes the row, then the content."""
    await StoredFile.objects.filter(pk=file.pk).adelete()
    await asyncio.to_thread(contents.delete, file.content)


async def clean(contents: ContentStore) -> int:
    """Deletes expired files; returns how many."""
    expired = await _expired()
    for file in expired:
        await delete(file, contents)
    return len(expired)


@sync_to_async
def _expired() -> list[StoredFile]:
    rows = StoredFile.objects.filter(expires__lt=timezone.now())
    return list(rows.exclude(batches__status__in=OPEN).order_by("pk")[:_AT_ONCE])


async def check_unused(file: StoredFile) -> None:
    """Raises ApiError 409 if an open batch reads the file."""
    batch = await file.batches.filter(status__in=OPEN).afirst()
    if batch is not None:
        message = f"{batch.public_id} reads this file: cancel it first, or wait for its end"
        raise ApiError(409, message, code="file_in_use")


@sync_to_async
def known_contents() -> set[str]:
    """The names of all contents that belong to a row."""
    return set(StoredFile.objects.values_list("content", flat=True))


def expiry(limits: FileLimits, seconds: int | None) -> datetime:
    """When a file that is created now expires."""
    longest = timedelta(days=limits.days)
    if seconds is not None:
        longest = min(longest, timedelta(seconds=seconds))
    return timezone.now() + longest
