"""Continuing the answers that other API processes left unfinished."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import structlog
from django.db import DatabaseError

from api.answers import store
from api.answers.record import StoredAnswer
from api.answers.writer import AnswerWriters
from api.catalog import Catalog
from api.requests.submit import Submitter
from broker.client import Client
from broker.errors import NoTree, Unavailable

log = structlog.get_logger("canopy.api")

EVERY = 3.0  # seconds between looks
INTERRUPTED = "interrupted: the service was restarted while it wrote this answer"
TREELESS = 600.0  # seconds a model may be without a tree before its answers are given up


class Takeover:
    """Looks for orphans of these kinds every few seconds, and when woken."""

    def __init__(
        self,
        kinds: Sequence[type[StoredAnswer]],
        client: Client,
        catalog: Catalog,
        submitter: Submitter,
        writers: AnswerWriters,
    ) -> None:
        self._kinds = kinds
        self._client = client
        self._catalog = catalog
        self._submitter = submitter
        self._writers = writers
        self._woken = asyncio.Event()
        self._treeless: dict[str, float] = {}  # models, and when their tree was first missed

    def wake(self) -> None:
        """Looks at once: somebody has seen an orphan."""
        self._woken.set()

    async def run(self) -> None:
        """Never ends."""
        while True:
            if self._client.connected:
                await self._look()
            await self._pause()

    async def _pause(self) -> None:
        """Until the next look is due, `wake` is called, or the broker is back."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._woken.wait())]
        if not self._client.connected:
            waits.append(asyncio.create_task(self._client.changed()))
        try:
            await asyncio.wait(waits, timeout=EVERY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        self._woken.clear()

    async def _look(self) -> None:
        try:
            for kind in self._kinds:
                for record in await store.orphans(kind, self._writers.handles()):
                    await self._try(record)
        except Unavailable:
            pass  # the rest follows when the broker is back
        except DatabaseError as error:  # not migrated yet, or away: /readyz says so
            log.warning("database not usable now", reason=str(error))

    async def _try(self, record: StoredAnswer) -> None:
        try:
            await self._take(record)
        except (Unavailable, DatabaseError):
            raise
        except Exception:  # fate: tried again when the claim is silent; the others go first
            log.exception(
                "an answer could not be taken over",
                answer=record.handle,
                request_id=record.request_id,
            )

    async def _take(self, record: StoredAnswer) -> None:
        """Continues one answer, unless another process is faster.

        Raises Unavailable; then nothing has changed.
        """
        touched = record.touched
        if not await store.claim(record):
            return
        job = record.job_to_resume()
        if job is None:
            record.fail("internal", INTERRUPTED, retryable=True)
            await store.save(record)
            return
        try:
            stream = await self._submitter.resubmit(job)
        except Unavailable:
            await store.release(record, touched)
            raise
        except NoTree:
            await self._without_tree(record, job.model, touched)
            return
        self._treeless.pop(job.model, None)
        log.info(
            "answer taken over",
            answer=record.handle,
            request_id=record.request_id,
            characters=len(job.delivered),
        )
        self._writers.begin(record, stream, self._catalog.nobody_serves(job.model))

    async def _without_tree(self, record: StoredAnswer, model: str, touched: datetime) -> None:
        missed_at = self._treeless.setdefault(model, time.monotonic())
        if time.monotonic() - missed_at < TREELESS:
            await store.release(record, touched)
        else:
            record.fail("no_node", f"the tree of model {model!r} is gone", retryable=True)
            await store.save(record)
