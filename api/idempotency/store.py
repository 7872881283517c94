"""Every query on kept requests."""

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

KEPT = timedelta(hours=24)
EXPIRE_EVERY = 600.0  # seconds


async def find(user: User, key: str) -> KeptRequest | None:
    """The user's request of that name."""
    return await KeptRequest.objects.filter(user=user, key=key).afirst()


async def create(
    user: User, key: str, fingerprint: str, job: Job
) -> tuple[KeptRequest, Job] | None:
    """Stores a new request; returns it and its job, now with a seed. None if the name was taken meanwhile.

    Raises ApiError 401 if the account was removed.
    """
    made = KeptRequest(user=user, key=key, fingerprint=fingerprint)
    job = made.start(job)
    try:
        await made.asave(force_insert=True)
    except IntegrityError as error:
        if not await User.objects.filter(pk=user.pk).aexists():
            raise ApiError(401, "this account was removed") from error
        return None
    return made, job


async def remove(kept: KeptRequest) -> None:
    """Forgets a request that was refused."""
    await KeptRequest.objects.filter(pk=kept.pk).adelete()


async def remove_failed(kept: KeptRequest) -> None:
    """Forgets a request that failed and may be tried again, unless somebody has done so."""
    await KeptRequest.objects.filter(pk=kept.pk, status=Status.FAILED).adelete()


async def delete_expired() -> int:
    """Deletes what is too old; returns how many."""
    deleted, _ = await KeptRequest.objects.filter(created__lt=timezone.now() - KEPT).adelete()
    return int(deleted)


async def delete_expired_repeatedly() -> None:
    """Deletes what is too old, for as long as the process lives."""
    while True:
        try:
            await delete_expired()
        except DatabaseError as error:  # not migrated yet, or away: /readyz says so
            log.warning("kept requests could not be expired", reason=str(error))
        await asyncio.sleep(EXPIRE_EVERY)
