"""Every query on stored responses, always through the user."""

import asyncio
from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError, IntegrityError
from django.db.models import Count
from django.utils import timezone

from api.accounts.models import User
from api.errors import ApiError
from api.responses.models import StoredResponse
from api.settings import MAX_BODY
from api.storage.inserts import RowInserts

log = structlog.get_logger("canopy.api")

RETENTION = timedelta(days=30)
MOST_RESPONSES = 10_000  # of one user: the oldest are deleted first
DELETE_EXPIRED_EVERY = 600.0  # seconds
MOST_TURNS = 1000  # responses that one continues, directly or not
MOST_BYTES = 4 * MAX_BODY  # of theirs

# A response and those that it continues, the newest first. One query, however many they are.
_CHAIN = """
WITH RECURSIVE chain (id, previous, depth, size) AS (
    SELECT id, previous, 1, input_size + LENGTH(content)
    FROM responses_storedresponse WHERE name = %s AND user_id = %s
    UNION ALL
    SELECT former.id, former.previous, depth + 1, size + former.input_size + LENGTH(former.content)
    FROM responses_storedresponse AS former JOIN chain ON former.name = chain.previous
    WHERE former.user_id = %s AND depth < %s AND size < %s
)
SELECT chain.depth, chain.size, stored.*
FROM chain JOIN responses_storedresponse AS stored ON stored.id = chain.id ORDER BY chain.depth
"""


async def find(user: User, name: str) -> StoredResponse | None:
    """The user's response of that name."""
    return await StoredResponse.objects.filter(user=user, name=name).afirst()


async def find_all(user: User, names: Collection[str]) -> dict[str, StoredResponse]:
    """The user's responses among these, by name."""
    rows = StoredResponse.objects.filter(user=user, name__in=names)
    return {row.name: row async for row in rows}


async def of_key(user: User, key: str) -> StoredResponse | None:
    """The user's background response with that Idempotency-Key."""
    return await StoredResponse.objects.filter(user=user, key=key).afirst()


@sync_to_async
def chain(user: User, name: str) -> list[StoredResponse]:
    """The response and those that it continues, oldest first; [] if there is none.

    Not all of them if there are more than MOST_TURNS, or MOST_BYTES: the first one then still
    names a previous one, as it does if that was deleted.
    """
    values = [name, user.pk, user.pk, MOST_TURNS, MOST_BYTES]
    rows: list[Any] = list(StoredResponse.objects.raw(_CHAIN, values))
    return rows[::-1]


async def insert(response: StoredResponse, inserts: RowInserts[StoredResponse]) -> bool:
    """Stores a new response; False if one of its name or key is stored already.

    Raises ApiError 401 if the account was removed.
    """
    try:
        await inserts.insert(response)
    except IntegrityError as error:
        if not await User.objects.filter(pk=response.user_id).aexists():
            raise ApiError(401, "this account was removed", code="account_removed") from error
        return False
    return True


async def remove(response: StoredResponse) -> None:
    """Deletes the response; one that is being written ends then."""
    await StoredResponse.objects.filter(pk=response.pk).adelete()


async def delete_expired() -> int:
    """Deletes what is older than RETENTION, and of each user all but MOST_RESPONSES."""
    oldest = timezone.now() - RETENTION
    deleted, _ = await StoredResponse.objects.filter(created__lt=oldest).adelete()
    return int(deleted) + await _delete_excess()


@sync_to_async
def _delete_excess() -> int:
    deleted = 0
    for user in _users_above(MOST_RESPONSES):
        rows = StoredResponse.objects.filter(user_id=user)
        newest_to_go = rows.order_by("-pk").values_list("pk", flat=True)[MOST_RESPONSES]
        deleted += rows.filter(pk__lte=newest_to_go).delete()[0]
    return deleted


def _users_above(most: int) -> Iterable[int]:
    counts = StoredResponse.objects.order_by().values("user_id").annotate(stored=Count("pk"))
    return list(counts.filter(stored__gt=most).values_list("user_id", flat=True))


async def delete_expired_repeatedly() -> None:
    """Never ends."""
    while True:
        try:
            await delete_expired()
        except DatabaseError as error:  # not migrated yet, or away: /readyz says so
            log.warning("stored responses could not be expired", reason=str(error))
        await asyncio.sleep(DELETE_EXPIRED_EVERY)
