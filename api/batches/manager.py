"""Finds batches that no process runs, and runs them here."""

import asyncio
import contextlib
from datetime import timedelta

import structlog
from django.db import DatabaseError

from api.batches import store
from api.batches.models import Batch
from api.batches.pacing import Pacer
from api.batches.run import BatchRun
from api.files.disk import ContentStore
from broker.client import Client

log = structlog.get_logger("canopy.api")

EVERY = 3.0  # seconds between looks
MOST_RUNNING = 64  # batches of this process


class BatchManager:
    """The batches of this process. `keep`: how long their files are kept."""

    def __init__(
        self, client: Client, contents: ContentStore, pacer: Pacer, keep: timedelta
    ) -> None:
        self._client = client
        self._contents = contents
        self._keep = keep
        self._pacer = pacer
        self._woken = asyncio.Event()
        self._running: dict[int, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """Looks at once: a batch was made."""
        self._woken.set()

    async def run(self) -> None:
        """Never ends."""
        while True:
            if self._client.connected:
                await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._woken.wait()
            self._woken.clear()

    async def stop(self) -> None:
        """Ends all work here; the batches stay for another process."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        room = MOST_RUNNING - len(self._running)
        if room <= 0:
            return
        try:
            for batch in await store.orphans(list(self._running), room):
                claimed = await store.claim(batch)
                if claimed is not None:
                    self._start(claimed)
        except DatabaseError as error:  # not migrated yet, or away: /readyz says so
            log.warning("database not usable now", reason=str(error))

    def _start(self, batch: Batch) -> None:
        run = BatchRun(batch, self._contents, self._pacer, self._keep)
        log.info("batch begun", batch=batch.public_id, lease=batch.lease, status=batch.status)
        task = asyncio.create_task(run.run(), name=batch.public_id)
        self._running[batch.pk] = task
        task.add_done_callback(lambda done: self._done(batch, done))

    def _done(self, batch: Batch, task: "asyncio.Task[None]") -> None:
        del self._running[batch.pk]
        error = None if task.cancelled() else task.exception()
        if error is not None:  # fate: claimed again when its heartbeat is silent for long enough
            log.error("a batch was interrupted", batch=batch.public_id, exc_info=error)
