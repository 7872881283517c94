"""Tells users of the end of their jobs: each message until it arrives, within limits.

What is due is in the database, so a restart loses nothing; a message may arrive twice, with the
same id.
"""

import asyncio
import contextlib
from collections import Counter
from datetime import timedelta

import msgspec
import structlog
from django.db import DatabaseError

from api.jobs import store
from api.jobs.models import StoredJob
from api.jobs.schemas import stored_job
from api.webhooks.sender import SECONDS, SendFailed, WebhookSender

log = structlog.get_logger("canopy.api")

EVERY = 2.0  # seconds between looks
AT_ONCE = 16
MOST_OF_USER = 4  # of those: who does not answer holds up nobody else's
# Seconds after a try that failed: ten tries within a day.
AFTER = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800)


def again(attempts: int) -> timedelta | None:
    """How long to wait after so many tries; None: enough of them."""
    return timedelta(seconds=AFTER[attempts - 1]) if attempts <= len(AFTER) else None


class Webhooks:
    """Sends what is due. All API processes do; each message is one's."""

    def __init__(self, sender: WebhookSender) -> None:
        self.sender = sender
        self._sending: dict[asyncio.Task[None], int] = {}  # with the job's user
        self._has_ended = asyncio.Event()

    async def run(self) -> None:
        """Never ends."""
        try:
            while True:
                try:
                    await self._look()
                except DatabaseError as error:  # not migrated yet, or away: /readyz says so
                    log.warning("database not usable now", reason=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EVERY):
                        await self._has_ended.wait()
                self._has_ended.clear()
        finally:
            tasks = list(self._sending)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        room = AT_ONCE - len(self._sending)
        if room <= 0:
            return
        counts = Counter(self._sending.values())
        full = [user for user, count in counts.items() if count >= MOST_OF_USER]
        for job in await store.due(room, full):
            if counts[job.user_id] < MOST_OF_USER and await self._take(job):
                counts[job.user_id] += 1
                self._begin(job)

    def _begin(self, job: StoredJob) -> None:
        task = asyncio.create_task(self._deliver(job), name=f"webhook of {job.public_id}")
        self._sending[task] = job.user_id
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        del self._sending[task]
        self._has_ended.set()
        error = None if task.cancelled() else task.exception()
        if error is not None:  # fate: sent again when it is due
            log.error("a webhook was interrupted", webhook=task.get_name(), exc_info=error)

    async def _take(self, job: StoredJob) -> bool:
        # If this process dies meanwhile, another one sends it after that time.
        return await store.take_delivery(job, 3 * SECONDS)

    async def _deliver(self, job: StoredJob) -> None:
        try:
            await self._send(job)
        except DatabaseError as error:  # fate: sent again when it is due
            log.warning("a webhook's end is not stored", job=job.public_id, reason=str(error))

    async def _send(self, job: StoredJob) -> None:
        body = msgspec.json.encode(
            {
                "type": f"job.{job.status}",
                "timestamp": job.ended.isoformat() if job.ended else None,
                "data": stored_job(job).model_dump(mode="json"),
            }
        )
        attempts = job.webhook_attempts + 1
        try:
            await self.sender.send(job.webhook_url, job.webhook_secret, f"msg_{job.name}", body)
        except SendFailed as error:
            wait = None if error.permanent else again(attempts)
            log.info(
                "a webhook did not arrive", job=job.public_id, reason=str(error), attempts=attempts
            )
            await store.not_delivered(job, str(error), wait)
            return
        await store.delivered(job)
