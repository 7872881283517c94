"""The line, kept fresh while somebody watches: one composition for all watchers of a process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

import structlog

from api.http import sse
from api.operate.line.intake import Intake
from api.operate.line.view import line, with_pauses
from broker.client import Client
from broker.errors import BrokerError

log = structlog.get_logger("canopy.api")

RENEW_EVERY = 10.0  # seconds: nodes stop after 15
AT_MOST_EVERY = 0.4  # seconds between two events
ROWS_A_SECOND = 1_000  # of an event: a long line is sent less often
FIRST_SECONDS = 0.5  # that the first event waits for every node's report
REPEAT_EVERY = 5.0  # seconds after which an unchanged line is sent again


class LineWatch:
    """Has the nodes report as long as there are watchers."""

    def __init__(self, client: Client, intake: Intake) -> None:
        self._client = client
        self._intake = intake
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._event: bytes | None = None  # the latest
        self._composed = asyncio.Event()  # replaced by each composition
        self._news = asyncio.Event()
        client.job_watch.listen(self._news.set)
        intake.listen(self._news.set)

    async def follow(self) -> AsyncGenerator[bytes]:
        """Server-sent events named `line`: at once, on changes, and every REPEAT_EVERY seconds."""
        self._enter()
        try:
            while True:
                composed = self._composed
                if self._event is not None:
                    yield self._event
                await composed.wait()
        finally:
            await self._leave()

    def _enter(self) -> None:
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="line")

    async def _leave(self) -> None:
        self._watchers -= 1
        if self._watchers == 0 and self._task is not None:
            task, self._task, self._event = self._task, None, None
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        try:
            renewed = await self._begin()
            while True:
                self._news.clear()
                rows = self._compose()
                await asyncio.sleep(max(AT_MOST_EVERY, rows / ROWS_A_SECOND))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REPEAT_EVERY):
                        await self._news.wait()
                if time.monotonic() - renewed >= RENEW_EVERY:
                    renewed = time.monotonic()
                    self._client.job_watch.renew()
        finally:
            await self._client.job_watch.unwatch()

    async def _begin(self) -> float:
        """Returns when every node has reported, or most will have; the time of the request."""
        jobs = self._client.job_watch
        began = time.monotonic()
        try:
            await jobs.watch()
        except BrokerError as error:  # fate: the next connection begins with the watch
            log.info("the line is watched later", reason=str(error))
        while time.monotonic() - began < FIRST_SECONDS and not jobs.complete():
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS):
                    await self._news.wait()
        return began

    def _compose(self) -> int:
        """Makes the event of this moment, and wakes the watchers; returns its rows."""
        view = line(self._client.job_watch.reports(), time.monotonic(), time.time())
        view = with_pauses(view, self._intake.paused())
        self._event = sse.event("line", view.model_dump())
        composed, self._composed = self._composed, asyncio.Event()
        composed.set()
        return len(view.waiting) + len(view.running)
