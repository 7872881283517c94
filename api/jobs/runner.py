"""Runs stored jobs: each through its endpoint, as often as it takes to get one result.

The call has an Idempotency-Key, so the answer itself is stored, too, where its endpoint can do
that: after a restart the text goes on where it was (api/answers).
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from django.db import DatabaseError
from django.utils import timezone

from api.answers import store as answers
from api.answers.record import ATTEMPTS_A_TAKEOVER
from api.answers.writer import AnswerWriters, hops
from api.batches.pacing import Pacer
from api.environment import LONGEST_JOB
from api.jobs import store
from api.jobs.models import JobStatus, StoredJob
from api.requests import internal
from api.requests.active import ActiveRequests
from api.requests.internal import Reply
from api.requests.origin import Origin
from broker.client import Client
from broker.stream import Stream
from broker.wire import JobClass, Start

log = structlog.get_logger("canopy.api")

EVERY = 1.0  # seconds between looks
PAUSE_SECONDS = (0.5, 30.0)  # first and longest, between tries of a job that is refused
MOST_FAILURES = 5  # of its answer, for reasons that may pass
# Of this process. Those that pause, as their user's plan says, are not counted.
MOST_RUNNING: Mapping[JobClass, int] = {"interactive": 256, "batch": 64}
# Of one user, also those that pause: nobody's many jobs keep another's from the queue.
MOST_OF_USER: Mapping[JobClass, int] = {"interactive": 64, "batch": 16}
MOST_HELD = 4096  # of all users
_NO_KEY = b'"not_with_idempotency_key"'


@dataclass(slots=True)
class _Running:
    """A job that this process runs. `noted`: what was last stored of its progress."""

    job: StoredJob
    source: Origin
    is_paused: bool = False
    task: asyncio.Task[None] | None = None
    noted: dict[str, object] = field(default_factory=dict)


class JobRunner:
    """The stored jobs of this process."""

    def __init__(
        self, client: Client, active: ActiveRequests, writers: AnswerWriters, pacer: Pacer
    ) -> None:
        self._client = client
        self._writers = writers
        self._active = active
        self._pacer = pacer
        self._woken = asyncio.Event()
        self._running: dict[int, _Running] = {}

    def wake(self) -> None:
        """Looks at once: a job was made, or cancelled."""
        self._woken.set()

    async def run(self) -> None:
        """Never ends."""
        while True:
            try:
                await self._look()
            except DatabaseError as error:  # not migrated yet, or away: /readyz says so
                log.warning("database not usable now", reason=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._woken.wait()
            self._woken.clear()

    async def stop(self) -> None:
        """Ends all work here; the jobs stay for another process."""
        tasks = [each.task for each in self._running.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        await self._drop_lost()
        for running in list(self._running.values()):
            await self._note(running)
        if not self._client.connected:
            return
        for priority, most in MOST_RUNNING.items():
            mine = self._of_class(priority)
            room = most - sum(not each.is_paused for each in mine)
            room = min(room, MOST_HELD - len(self._running))
            if room > 0:
                await self._claim(room, priority)

    def _of_class(self, priority: JobClass) -> list[_Running]:
        return [each for each in self._running.values() if each.job.priority == priority]

    async def _claim(self, room: int, priority: JobClass) -> None:
        most = MOST_OF_USER[priority]
        held = Counter(each.job.user_id for each in self._of_class(priority))
        full = [user for user, count in held.items() if count >= most]
        for job in await store.orphans(set(self._running), room, priority, full):
            if held[job.user_id] >= most:
                self._woken.set()  # looks again at once, without this user's
                continue
            claimed = await store.claim(job)
            if claimed is not None:
                held[job.user_id] += 1
                self._start(claimed, priority)

    async def _drop_lost(self) -> None:
        """Ends the work on jobs that were cancelled, or are another process's."""
        kept = await store.still_mine(list(self._running))
        for pk, running in list(self._running.items()):
            if pk not in kept and running.task is not None:
                running.task.cancel()
                await self._stop_answer(running.job)

    async def _stop_answer(self, job: StoredJob) -> None:
        now = await store.current(job)
        if now is not None and now.status != JobStatus.CANCELLED:
            return  # another process goes on with it
        answer = await store.answer(job)
        if answer is None:
            return
        writer = self._writers.get(answer.handle)
        if writer is not None:
            await writer.stop()
        else:
            await answers.stop(answer)

    def _start(self, job: StoredJob, priority: JobClass) -> None:
        running = self._running[job.pk] = _Running(job, Origin(job_class=priority))
        running.task = asyncio.create_task(self._run(running), name=job.public_id)
        running.task.add_done_callback(lambda done: self._done(job, done))

    def _done(self, job: StoredJob, task: "asyncio.Task[None]") -> None:
        del self._running[job.pk]
        self._woken.set()
        error = None if task.cancelled() else task.exception()
        if error is not None:  # fate: claimed again when its heartbeat is silent for long enough
            log.error("a stored job was interrupted", job=job.public_id, exc_info=error)

    # ---- one job

    async def _run(self, running: _Running) -> None:
        job = running.job
        if not job.user.is_active:
            await store.cancel(job)
            return
        answer = await store.answer(job)
        if answer is not None:  # after a restart
            running.source.request_ids[answer.request_id] = None
        await self._answer(running)

    async def _answer(self, running: _Running) -> None:
        reply = await self._reply(running)
        await self._note(running)
        answer = await store.answer(running.job)
        if answer is not None and answer.trail:  # with the wait at each node
            await store.note(running.job, trail=answer.trail)
        if await store.finish(running.job, reply):
            status = None if reply is None else reply.status
            log.info("stored job ended", job=running.job.public_id, status=status)

    async def _reply(self, running: _Running) -> Reply | None:
        """None if the job's deadline passes."""
        failures = 0
        key: str | None = running.job.answer_key
        pause, longest = PAUSE_SECONDS
        while True:
            reply = await self._call_in_turn(running, key)
            if reply is None:
                return None
            if key is not None and reply.status == 400 and _NO_KEY in reply.body:
                key = None  # several answers, or more than text: made anew after a restart
                continue
            failures += reply.request_id is not None
            if reply.status not in {429, 503} or failures >= MOST_FAILURES:
                return reply
            wait = max(pause * random.uniform(0.5, 1.0), reply.retry_after or 0.0)
            running.is_paused = True
            await asyncio.sleep(min(wait, max(0.0, _seconds_left(running.job))))
            running.is_paused = False
            pause = min(longest, pause * 2)

    async def _call_in_turn(self, running: _Running, key: str | None) -> Reply | None:
        """One try; of a batch's class when the pacer has a place."""
        model = running.job.model
        if running.job.priority != "batch":
            return await self._call(running, key)
        await self._pacer.acquire(model)
        try:
            return await self._call(running, key)
        finally:
            self._pacer.release(model)

    async def _call(self, running: _Running, key: str | None) -> Reply | None:
        job, left = running.job, _seconds_left(running.job)
        if left <= 0:
            return None
        return await internal.call(
            job.user,
            job.endpoint,
            bytes(job.body),
            running.source,
            idempotency_key=key,
            seconds_left=min(left, LONGEST_JOB),
        )

    # ---- progress

    async def _note(self, running: _Running) -> None:
        stream = self._stream(running)
        if stream is None:
            return
        fields = _progress(stream)
        if fields != running.noted:
            running.noted = fields
            await store.note(running.job, **fields)

    def _stream(self, running: _Running) -> Stream | None:
        for request_id in reversed(running.source.request_ids):
            return self._active.get(request_id)
        return None


def _seconds_left(job: StoredJob) -> float:
    return (job.expires - timezone.now()).total_seconds()


def _progress(stream: Stream) -> dict[str, object]:
    """What is stored of a stream."""
    fields: dict[str, object] = {
        "request_id": stream.request_id,
        "attempts": sum(divmod(stream.attempt, ATTEMPTS_A_TAKEOVER)),
        "status": JobStatus.RUNNING if stream.started else JobStatus.QUEUED,
        "position": None,
        "starts": None,
    }
    if stream.node:
        fields["trail"] = hops(Start(request_id=stream.request_id, node=stream.node))
    if not stream.started and stream.position is not None:
        fields["position"] = stream.position
        if stream.starts is not None:
            fields["starts"] = datetime.fromtimestamp(stream.starts, UTC)
    return fields
