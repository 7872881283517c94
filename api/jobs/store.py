"""Every query on stored jobs."""

import secrets
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import models, transaction
from django.utils import timezone

from api.accounts.models import User
from api.answers import process
from api.answers.store import orphaned
from api.errors import ApiError
from api.idempotency.models import KeptRequest
from api.jobs.models import OPEN, PREFIX, Delivery, JobStatus, StoredJob
from api.requests.internal import Reply

MOST_OPEN = 1000  # jobs of one user
RETRY_AFTER = 30  # seconds
_STATUSES = {200: JobStatus.COMPLETED, 504: JobStatus.EXPIRED}


@sync_to_async
@transaction.atomic
def create(user: User, **fields: Any) -> StoredJob:
    """A new job. Raises ApiError 429 if the user has too many open ones, 401 without the user."""
    if not User.objects.select_for_update().filter(pk=user.pk):
        raise ApiError(401, "this account was removed", code="account_removed")
    if StoredJob.objects.filter(user=user, status__in=OPEN).count() >= MOST_OPEN:
        raise ApiError(
            429,
            f"you have {MOST_OPEN} open jobs, the most of one user: try again when one has ended, "
            "or cancel one (DELETE /v1/jobs/ID)",
            code="too_many_jobs",
            params={"most": MOST_OPEN},
            headers={"Retry-After": str(RETRY_AFTER)},
        )
    return StoredJob.objects.create(user=user, name=secrets.token_hex(12), **fields)


async def find(user: User, public_id: str, field: str = "job_id") -> StoredJob:
    """One of the user's jobs. Raises ApiError 404, about `field` of the request."""
    name = public_id.removeprefix(PREFIX)[:24].replace("\x00", "")
    job = await StoredJob.objects.filter(user=user, name=name).defer("body").afirst()
    if job is None:
        message = f"there is no job {public_id[:100]!r} of yours"
        raise ApiError(404, message, field=field, code="not_found")
    return job


async def listed(
    user: User,
    *,
    status: str | None,
    model: str | None,
    created_after: datetime | None,
    created_before: datetime | None,
    after: StoredJob | None,
    limit: int,
) -> list[StoredJob]:
    """The user's jobs, newest first, without their results."""
    rows = StoredJob.objects.filter(user=user).defer("body", "reply")
    if status is not None:
        rows = rows.filter(status=status)
    if model is not None:
        rows = rows.filter(model=model.replace("\x00", ""))
    if created_after is not None:
        rows = rows.filter(created__gt=created_after)
    if created_before is not None:
        rows = rows.filter(created__lt=created_before)
    if after is not None:
        rows = rows.filter(pk__lt=after.pk)
    return [row async for row in rows.order_by("-pk")[:limit]]


async def current(job: StoredJob) -> StoredJob | None:
    """The job as it is stored now; None if it was removed."""
    return await StoredJob.objects.defer("body").filter(pk=job.pk).afirst()


async def answer(job: StoredJob) -> KeptRequest | None:
    """The job's answer while it is written, and afterwards; None if it is not stored as text."""
    return await KeptRequest.objects.filter(user_id=job.user_id, key=job.answer_key).afirst()


async def cancel(job: StoredJob) -> bool:
    """Ends an open job without a result; False if it has ended."""
    rows = StoredJob.objects.filter(pk=job.pk, status__in=OPEN)
    return await _end(rows, job, JobStatus.CANCELLED) > 0


async def _end(
    rows: "models.QuerySet[StoredJob]", job: StoredJob, status: str, **fields: Any
) -> int:
    now = timezone.now()
    if job.webhook_url:
        fields.update(webhook=Delivery.PENDING, webhook_due=now)
    return await rows.aupdate(
        status=status, ended=now, owner="", position=None, starts=None, body=b"", **fields
    )


# ---- the owner's


@sync_to_async
def orphans(
    mine: Collection[int], limit: int, priority: str, full: Collection[int] = ()
) -> list[StoredJob]:
    """Open jobs that no process runs, oldest first, without those of the users `full`."""
    rows = StoredJob.objects.filter(status__in=OPEN, priority=priority).exclude(user__in=full)
    lost = rows.filter(orphaned(rows)).exclude(pk__in=mine)
    return list(lost.defer("body", "reply").order_by("pk")[:limit])


async def claim(job: StoredJob) -> StoredJob | None:
    """Makes this process the owner; None if another was faster or the former owner is back."""
    unchanged = StoredJob.objects.filter(
        pk=job.pk, status__in=OPEN, owner=job.owner, touched=job.touched
    )
    if not await unchanged.aupdate(owner=process.identity(), touched=timezone.now()):
        return None
    return await StoredJob.objects.select_related("user").filter(pk=job.pk).afirst()


def _own() -> "models.QuerySet[StoredJob]":
    return StoredJob.objects.filter(status__in=OPEN, owner=process.identity())


async def finish(job: StoredJob, reply: Reply | None) -> bool:
    """Stores a job's one result, None if its deadline passed; False if it is not ours to end."""
    if reply is None:
        return await _end(_own().filter(pk=job.pk), job, JobStatus.EXPIRED) > 0
    status = _STATUSES.get(reply.status, JobStatus.FAILED)
    return (
        await _end(
            _own().filter(pk=job.pk),
            job,
            status,
            reply=reply.body,
            reply_status=reply.status,
            request_id=reply.request_id or job.request_id,
        )
        > 0
    )


async def still_mine(mine: Sequence[int]) -> set[int]:
    """Those of the jobs that are open and this process's; with a heartbeat."""
    if not mine:
        return set()
    await _own().filter(pk__in=mine).aupdate(touched=timezone.now())
    return {pk async for pk in _own().filter(pk__in=mine).values_list("pk", flat=True)}


async def note(job: StoredJob, **fields: Any) -> None:
    """Stores how far a job is."""
    await _own().filter(pk=job.pk).aupdate(**fields)


async def release_all() -> None:
    """Gives up the ownership of all jobs: another process takes them over at once."""
    await _own().aupdate(owner="")


async def forget_old(days: int) -> int:
    """Deletes jobs that ended so many days ago; returns how many."""
    oldest = timezone.now() - timedelta(days=days)
    deleted, _ = await StoredJob.objects.filter(ended__lt=oldest).adelete()
    return int(deleted)


# ---- webhooks


async def due(limit: int, full: Collection[int]) -> list[StoredJob]:
    """Jobs whose webhook is to be sent now, without those of the users `full`."""
    rows = StoredJob.objects.filter(webhook_due__lte=timezone.now()).exclude(user__in=full)
    rows = rows.defer("body")
    return [job async for job in rows.order_by("webhook_due")[:limit]]


async def take_delivery(job: StoredJob, seconds: float) -> bool:
    """Makes this process the one that sends it, for so long; False if another was faster."""
    until = timezone.now() + timedelta(seconds=seconds)
    rows = StoredJob.objects.filter(pk=job.pk, webhook_due=job.webhook_due)
    return await rows.aupdate(webhook_due=until, webhook_attempts=job.webhook_attempts + 1) > 0


async def delivered(job: StoredJob) -> None:
    """The webhook has arrived."""
    await StoredJob.objects.filter(pk=job.pk).aupdate(
        webhook=Delivery.DELIVERED, webhook_due=None, webhook_error=""
    )


async def not_delivered(job: StoredJob, reason: str, again: timedelta | None) -> None:
    """It has not; None: and is not sent again."""
    await StoredJob.objects.filter(pk=job.pk).aupdate(
        webhook=Delivery.FAILED if again is None else Delivery.PENDING,
        webhook_due=None if again is None else timezone.now() + again,
        webhook_error=reason[:300],
    )
