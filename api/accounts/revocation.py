"""Ends what runs for users who were disabled, and endless streams of those whose role has changed.

Whoever changes an account (Django's admin, the command line, another process) tells nobody: each
API process compares what it serves with the database. New requests are refused by auth.py.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Protocol

import structlog

from api.accounts.models import User
from api.requests.active import ActiveRequests
from broker.client import Client

log = structlog.get_logger("canopy.api")

CHECK_SECONDS = 1.0
_AT_ONCE = 500  # users in one query


class Readers(Protocol):
    """The endless streams of this process."""

    def readers(self) -> dict[int, User]:
        """Who reads one, by key, with the rights that they had when it began."""

    def end_streams_of(self, readers: Collection[int]) -> None:
        """Ends their streams; their pages connect again, or are refused."""


async def enforce_repeatedly(client: Client, active: ActiveRequests, streams: Readers) -> None:
    """Looks every CHECK_SECONDS, if there is anything to look for. Never ends."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        await cancel_jobs_of_disabled(client, active)
        await end_streams_of_changed(streams)


async def cancel_jobs_of_disabled(client: Client, active: ActiveRequests) -> None:
    """Cancels the waiting and running jobs of users who are disabled."""
    async for name in _disabled(active.users()):
        for request_id in active.of_user(name):
            log.info("cancelled: its user is disabled", request_id=request_id)
            client.cancel(request_id, name)


async def end_streams_of_changed(streams: Readers) -> None:
    """Ends the endless streams of users whose rights are no longer those of their beginning."""
    readers = streams.readers()
    if not readers:
        return
    changed = set(readers)
    async for user in _by_key(readers):
        if _rights(user) == _rights(readers[user.pk]):
            changed.discard(user.pk)
    if changed:
        streams.end_streams_of(changed)


def _rights(user: User) -> tuple[bool, bool, bool, str]:
    """With the password's hash: a new one ends what was opened with the former."""
    return user.is_active, user.is_staff, user.is_superuser, user.password


async def _disabled(names: Collection[str]) -> AsyncIterator[str]:
    ordered = sorted(names)
    for first in range(0, len(ordered), _AT_ONCE):
        some = ordered[first : first + _AT_ONCE]
        async for user in User.objects.filter(is_active=False, username__in=some):
            yield user.username


async def _by_key(keys: Collection[int]) -> AsyncIterator[User]:
    ordered = sorted(keys)
    for first in range(0, len(ordered), _AT_ONCE):
        async for user in User.objects.filter(pk__in=ordered[first : first + _AT_ONCE]):
            yield user
