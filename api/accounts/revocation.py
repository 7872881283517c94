"""Ends what runs for users who were disabled and for keys that are not valid any more.

And endless streams of users whose role has changed. Whoever changes an account (Django's admin, the
command line, another process) tells nobody: each API process compares what it serves with the
database. New requests are refused by auth.py.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any, Protocol

import structlog
from django.db.models import QuerySet
from django.utils import timezone

from api.accounts import keys
from api.accounts.models import User
from api.requests.active import ActiveRequests
from broker.client import Client

log = structlog.get_logger("canopy.api")

CHECK_SECONDS = 0.5
_AT_ONCE = 500  # users, or keys, in one query


class Readers(Protocol):
    """The endless streams of this process."""

    def readers(self) -> dict[int, User]:
        """Who reads one, by key, with the rights that they had when it began."""

    def end_streams_of(self, readers: Collection[int]) -> None:
        """Ends their streams; their pages connect again, or are refused."""

    def reading_keys(self) -> set[str]:
        """The API keys, by name, with which streams are read."""

    def end_streams_with(self, names: Collection[str]) -> None:
        """Ends the streams that are read with these keys."""


async def enforce_repeatedly(client: Client, active: ActiveRequests, streams: Readers) -> None:
    """Looks every CHECK_SECONDS, if there is anything to look for. Never ends."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        await cancel_jobs_of_disabled(client, active)
        await end_streams_of_changed(streams)
        await end_what_uses_invalid_keys(client, active, streams)


async def cancel_jobs_of_disabled(client: Client, active: ActiveRequests) -> None:
    """Cancels the waiting and running jobs of users who are disabled."""
    disabled = User.objects.filter(is_active=False)
    async for name in _found(disabled, "username", active.users()):
        for request_id in active.of_user(name):
            log.info("cancelled: its user is disabled", request_id=request_id)
            client.cancel(request_id, name)


async def end_what_uses_invalid_keys(
    client: Client, active: ActiveRequests, streams: Readers
) -> None:
    """Cancels the jobs, and ends the streams, of keys that were revoked or have expired."""
    used = active.keys() | streams.reading_keys()
    invalid = set(used)
    async for name in _found(keys.valid(timezone.now()), "name", used):
        invalid.discard(name)
    if not invalid:
        return
    for request_id, user in active.with_keys(invalid):
        log.info("cancelled: its key is not valid any more", request_id=request_id)
        client.cancel(request_id, user)
    streams.end_streams_with(invalid)


async def end_streams_of_changed(streams: Readers) -> None:
    """Ends the endless streams of users whose rights are no longer those of their beginning."""
    readers = streams.readers()
    if not readers:
        return
    changed = set(readers)
    for some in _parts(readers):
        async for user in User.objects.filter(pk__in=some):
            if _rights(user) == _rights(readers[user.pk]):
                changed.discard(user.pk)
    if changed:
        streams.end_streams_of(changed)


def _rights(user: User) -> tuple[bool, bool, bool, str]:
    """With the password's hash: a new one ends what was opened with the former."""
    return user.is_active, user.is_staff, user.is_superuser, user.password


async def _found(rows: "QuerySet[Any]", column: str, names: Collection[str]) -> AsyncIterator[str]:
    """Those of the names that the rows have in that column."""
    for some in _parts(names):
        async for name in rows.filter(**{f"{column}__in": some}).values_list(column, flat=True):
            yield name


def _parts(values: Collection[Any]) -> Iterator[list[Any]]:
    ordered = sorted(values)
    for first in range(0, len(ordered), _AT_ONCE):
        yield ordered[first : first + _AT_ONCE]
