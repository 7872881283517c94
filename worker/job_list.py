"""The list of a node's jobs for operators: asked for once, or published while somebody watches."""

import asyncio
import time
from collections.abc import Callable
from itertools import islice

from broker.job_messages import (
    MAX_RUNNING,
    JobReport,
    ReportJobs,
    RunningJob,
    WaitingJob,
)
from worker.jobs import Jobs
from worker.running_jobs import Running
from worker.waiting import Outlook

LOOK_SECONDS = 0.5  # between two looks at the jobs while somebody watches, at least
TOKENS_SECONDS = 1.0  # between two reports that differ in their tokens alone, at least
LOOK_SHARE = 0.01  # of the time, that looks may take: at a long queue they are rarer

Order = tuple[object, ...]  # what a report says of who is where


class JobList:
    """See the module. `publish(report)` sends a report to whoever watches."""

    def __init__(
        self, node: str, model: str, jobs: Jobs, publish: Callable[[JobReport], None]
    ) -> None:
        self._node = node
        self._model = model
        self._jobs = jobs
        self._publish = publish
        self._limit = 0
        self._until = 0.0  # loop time at which nobody watches any more
        self._timer: asyncio.TimerHandle | None = None
        self._published: tuple[Order, int] = ((), -1)  # the order and the tokens, as last told
        self._published_at = 0.0  # loop time

    def watch(self, message: ReportJobs) -> None:
        """Somebody watches for a while: publishes the jobs now, and changes from now on."""
        loop = asyncio.get_running_loop()
        if loop.time() > self._until:
            self._limit = 0
        self._limit = max(self._limit, message.limit)
        self._until = max(self._until, loop.time() + message.seconds)
        self._published = ((), -1)
        self._look()

    def stop(self) -> None:
        """The session is over, and the watch with it."""
        self._until = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def find(self, request_id: str, user: str | None, limit: int) -> JobReport:
        """The jobs of that user whose ids begin so; empty and None: all, up to the limit."""

        def matches(job_id: str, owner: str) -> bool:
            return job_id.startswith(request_id) and user in (None, owner)

        waiting = (
            outlook
            for outlook in self._jobs.waiting.outlooks()
            if matches(outlook.position.entry.item.job.request_id, outlook.position.entry.user)
        )
        running = [
            job for job in self._jobs.running if matches(job.run.job.request_id, job.run.job.user)
        ]
        return self._report(list(islice(waiting, limit)), running)

    def _look(self) -> None:
        """Publishes what has changed, and looks again in a while."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        began = loop.time()
        if began > self._until:
            return
        report = self.find("", None, self._limit)
        order, tokens = _order(report), sum(job.tokens for job in report.running)
        former_order, former_tokens = self._published
        pause_over = began - self._published_at >= TOKENS_SECONDS
        if order != former_order or (tokens != former_tokens and pause_over):
            self._published, self._published_at = (order, tokens), began
            self._publish(report)
        took = loop.time() - began
        self._timer = loop.call_later(max(LOOK_SECONDS, took / LOOK_SHARE), self._look)

    def _report(self, waiting: list[Outlook], running: list[Running]) -> JobReport:
        now = time.monotonic()
        return JobReport(
            node=self._node,
            model=self._model,
            waiting_count=len(self._jobs.waiting),
            batch_count=self._jobs.waiting.batch_count(),
            waiting=tuple(_waiting(outlook) for outlook in waiting),
            running=tuple(_running(job, now) for job in running[:MAX_RUNNING]),
        )


def _waiting(outlook: Outlook) -> WaitingJob:
    job = outlook.position.entry.item.job
    seconds = outlook.seconds
    if seconds is not None:
        seconds = round(seconds, 1)
    return WaitingJob(
        request_id=job.request_id,
        user=job.user,
        job_class=job.job_class,
        position=outlook.position.before + 1,
        created=job.created,
        seconds=seconds,
        reason=outlook.why.code,
        attempt=job.attempt,
        restarted=job.restarted,
    )


def _running(running: Running, now: float) -> RunningJob:
    run = running.run
    return RunningJob(
        request_id=run.job.request_id,
        user=run.job.user,
        job_class=run.job.job_class,
        created=run.job.created,
        seconds=round(now - running.run.began, 1),
        tokens=run.tokens,
        trail=run.trail,
        attempt=run.job.attempt,
    )


def _order(report: JobReport) -> Order:
    """Changes when a job comes, goes or moves, but not by time alone."""
    waiting = tuple((job.request_id, job.job_class, job.reason) for job in report.waiting)
    running = tuple((job.request_id, job.attempt) for job in report.running)
    return report.waiting_count, waiting, running
