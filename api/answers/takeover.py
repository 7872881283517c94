"""Going on with the answers that other API processes left unfinished."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import structlog
from django.db import DatabaseError

from api import broker
from api.answers import store
from api.answers.record import StoredAnswer
from api.answers.writing import writings
from api.catalog import nobody_serves
from api.requests.submit import publish
from broker.client import NoTree, Unavailable

log = structlog.get_logger("canopy.api")

EVERY = 3.0  # seconds between looks
INTERRUPTED = "interrupted: the service was restarted while it wrote this answer"
TREELESS = 600.0  # seconds a model may be without a tree before its answers are given up


class Takeover:
    """Looks for orphans of these kinds every few seconds, and when woken."""

    def __init__(self, kinds: Sequence[type[StoredAnswer]]) -> None:
        self._kinds = kinds
        self._woken = asyncio.Event()
        self._treeless: dict[str, float] = {}  # models, and when their tree was missed first

    def wake(self) -> None:
        """Looks at once."""
        self._woken.set()

    async def run(self) -> None:
        """For as long as the process lives."""
        _running.append(self)
        try:
            while True:
                if broker.client().connected:
                    await self._look()
                await self._pause()
        finally:
            _running.remove(self)

    async def _pause(self) -> None:
        """Until it is time, somebody calls, or the broker is there."""
        client = broker.client()
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._woken.wait())]
        if not client.connected:
            waits.append(asyncio.create_task(client.changed()))
        try:
            await asyncio.wait(waits, timeout=EVERY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        self._woken.clear()

    async def _look(self) -> None:
        try:
            for kind in self._kinds:
                for record in await store.orphans(kind, writings.handles()):
                    await self._try(record)
        except Unavailable:
            pass  # the broker left; the rest has its turn when it is back
        except DatabaseError as error:  # not migrated yet, or away: /readyz says so
            log.warning("database not usable now", reason=str(error))

    async def _try(self, record: StoredAnswer) -> None:
        try:
            await self._take(record)
        except (Unavailable, DatabaseError):
            raise
        except (
            Exception
        ):  # fate: it is tried again when its claim has been silent; the others have their turn
            log.exception("an answer could not be taken over", answer=record.handle)

    async def _take(self, record: StoredAnswer) -> None:
        """Goes on with one answer, unless another process is faster. Raises Unavailable; nothing is changed then."""
        touched = record.touched
        if not await store.claim(record):
            return
        job = record.job_to_go_on()
        if job is None:
            record.fail("internal", INTERRUPTED, retryable=True)
            await store.save(record)
            return
        try:
            stream = await publish(job)  # not `submit`: it was admitted once
        except Unavailable:
            await store.release(record, touched)
            raise
        except NoTree:
            await self._without_tree(record, job.model, touched)
        else:
            self._treeless.pop(job.model, None)
            log.info(
                "answer taken over",
                answer=record.handle,
                request_id=record.request_id,
                characters=len(job.delivered),
            )
            writings.begin(record, stream, nobody_serves(job.model))

    async def _without_tree(self, record: StoredAnswer, model: str, touched: datetime) -> None:
        missed = self._treeless.setdefault(model, time.monotonic())
        if time.monotonic() - missed < TREELESS:
            await store.release(record, touched)
        else:
            record.fail("no_node", f"the tree of model {model!r} is gone", retryable=True)
            await store.save(record)


_running: list[Takeover] = []  # none or one


def wake() -> None:
    """Somebody has seen an orphan: it is taken over now."""
    for each in _running:
        each.wake()
