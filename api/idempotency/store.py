"""Every query on idempotent requests."""

import asyncio
from datetime import timedelta

import structlog
from django.db import DatabaseError, IntegrityError
from django.utils import timezone

from api.accounts.models import User
from api.answers.record import Status
from api.errors import ApiError
from api.idempotency.models import KeptRequest
from broker.wire import Job

log = structlog.get_logger("canopy.api")

RETENTION = timedelta(hours=24)
DELETE_EXPIRED_EVERY = 600.0  # seconds


async def find(user: User, key: str) -> KeptRequest | None:
    """The user's request with that key."""
    return await KeptRequest.objects.filter(user=user, key=key).afirst()


async def create(
    user: User, key: str, fingerprint: str, job: Job
) -> tuple[KeptRequest, Job] | None:
    """Stores a new request; returns it and its job, now with a seed. None if the key is taken.

    Raises ApiError 401 if the account was removed.
    """
    request = KeptRequest(user=user, key=key, fingerprint=fingerprint)
    job = request.start(job)
    try:
        await request.asave(force_insert=True)
    except IntegrityError as error:
        if not await User.objects.filter(pk=user.pk).aexists():
            raise ApiError(401, "this account was removed", code="account_removed") from error
        return None
    return request, job


async def remove(request: KeptRequest) -> None:
    """Removes a request whose job was refused."""
    await KeptRequest.objects.filter(pk=request.pk).adelete()


async def remove_failed(request: KeptRequest) -> None:
    """Removes a request that failed and may be tried again, unless somebody else has done so."""
    await KeptRequest.objects.filter(pk=request.pk, status=Status.FAILED).adelete()


async def delete_expired() -> int:
    """Deletes requests older than RETENTION; returns how many."""
    oldest = timezone.now() - RETENTION
    deleted, _ = await KeptRequest.objects.filter(created__lt=oldest).adelete()
    return int(deleted)


async def delete_expired_repeatedly() -> None:
    """Never ends."""
    while True:
        try:
            await delete_expired()
        except DatabaseError as error:  # not migrated yet, or away: /readyz says so
            log.warning("kept requests could not be expired", reason=str(error))
        await asyncio.sleep(DELETE_EXPIRED_EVERY)
