"""Jobs on their way to the broker: admitted, charged, published."""

from functools import partial

import msgspec
import structlog

from api.accounts import scopes
from api.catalog import Catalog
from api.metrics.instruments import JobInstruments, outcome
from api.operate.history.log import HistoryLog
from api.operate.line.intake import Intake
from api.operate.models.store import Cards
from api.operate.usage.log import UsageLog
from api.plans import plans
from api.plans.plans import Plans
from api.requests import concurrency_limit, errors, origin
from api.requests.accounting import Charge, TokenAccounting
from api.requests.active import ActiveRequests
from api.requests.admission import Backlog
from api.requests.open_jobs import OpenJobs
from api.requests.waiting_jobs import WaitingJobs
from broker import tracing
from broker.client import Client
from broker.errors import NoTree, Unavailable
from broker.stream import Stream
from broker.tracing import Tracer
from broker.wire import Job
from topology import names

log = structlog.get_logger("canopy.api")


class Submitter:
    """Submits jobs. `job_seconds`: the deadline of a job that has none."""

    def __init__(
        self,
        *,
        client: Client,
        catalog: Catalog,
        intake: Intake,
        cards: Cards,
        backlog: Backlog,
        waiting_jobs: WaitingJobs,
        open_jobs: OpenJobs,
        plans: Plans,
        accounting: TokenAccounting,
        active: ActiveRequests,
        instruments: JobInstruments,
        history: HistoryLog,
        usage: UsageLog,
        tracer: Tracer,
        job_seconds: float,
    ) -> None:
        self._client = client
        self._catalog = catalog
        self._intake = intake
        self._cards = cards
        self._backlog = backlog
        self._waiting_jobs = waiting_jobs
        self._open_jobs = open_jobs
        self._plans = plans
        self._accounting = accounting
        self._active = active
        self._instruments = instruments
        self._history = history
        self._usage = usage
        self._tracer = tracer
        self._job_seconds = job_seconds

    async def submit(self, job: Job) -> Stream:
        """Publishes the job if it may wait.

        Raises ApiError 404 (no such model), 429 (the backlog is full, or the user has as many
        requests as the model or their plan allows) or 503, also while the model is paused.
        """
        [stream] = await self.submit_all([job])
        return stream

    async def submit_all(self, jobs: list[Job]) -> list[Stream]:
        """Submits the jobs, all of one model, class and user, or none of them.

        Raises ApiError as `submit` does, and 400 if the model allows no user so many at a time.
        """
        jobs = [_with_key(job) for job in origin.adopt(jobs)]
        model = jobs[0].model
        scopes.current.get().check_model(model)
        errors.check_task(jobs[0], self._catalog.tasks(model))
        await self._intake.check(model)
        await self._plans.reserve(jobs)
        streams: list[Stream] = []
        try:
            # Before anything is awaited: a burst must not pass the limit.
            self._open_jobs.reserve(jobs, self._cards.of(model).most_requests, plans.limits())
            for job in jobs:
                await self._backlog.admit(job)
                streams.append(await self._publish_or_refuse(job))
        except BaseException:
            for job in jobs:
                self._open_jobs.remove(job.request_id)
            self._plans.release(jobs)
            for stream in streams:
                await stream.aclose()
            raise
        return streams

    async def resubmit(self, job: Job) -> Stream:
        """Publishes a job that was admitted before, and counts it. Raises NoTree or Unavailable."""
        self._open_jobs.add(job)
        try:
            return await self.publish(job)
        except BaseException:
            self._open_jobs.remove(job.request_id)
            raise

    async def _publish_or_refuse(self, job: Job) -> Stream:
        """Raises ApiError 404 or 503."""
        try:
            return await self.publish(job)
        except NoTree:
            models = await self._catalog.models()
            if job.model in models:
                raise errors.tree_down(job.model) from None
            raise errors.no_such_model(job.model, models) from None
        except Unavailable as error:
            raise errors.broker_unavailable(error) from error

    async def publish(self, job: Job) -> Stream:
        """Publishes the job, charged to its user, without a limit. Raises NoTree or Unavailable.

        It is not counted among its user's open jobs: that is for whoever asks on their behalf.
        """
        if job.seconds_left is None:
            job = msgspec.structs.replace(job, seconds_left=self._job_seconds, deadline=None)
        job = self._cards.apply(job)  # also to an answer that is taken over: stored as asked
        charge = self._accounting.charge(job)
        self._waiting_jobs.add(job)  # before the broker confirms: a burst must not pass the limit
        try:
            stream = await self._send(
                msgspec.structs.replace(job, work=charge.cost, expected=charge.expected)
            )
        except BaseException:
            self._accounting.refund(charge)
            self._waiting_jobs.remove(job.request_id)
            raise
        concurrency_limit.release_permit()
        stream.when_begun(partial(self._waiting_jobs.remove, job.request_id))
        self._instruments.submitted(stream)
        log.debug("job submitted", request_id=job.request_id, model=job.model)
        stream.when_closed(partial(self._closed, charge))
        self._active.add(stream)
        return stream

    async def _send(self, job: Job) -> Stream:
        """Gives the job to the broker. Raises NoTree or Unavailable."""
        if not self._tracer.enabled:
            return await self._client.submit(job)
        span = self._tracer.start(
            f"send {names.JOBS_EXCHANGE}",
            "producer",
            tracing.current.get(),
            messaging__system="rabbitmq",
            messaging__operation__type="send",
            messaging__operation__name="send",
            messaging__destination__name=names.JOBS_EXCHANGE,
            messaging__rabbitmq__destination__routing_key=job.model,
            messaging__message__id=job.request_id,
        )
        try:
            return await self._client.submit(
                msgspec.structs.replace(job, traceparent=span.traceparent)
            )
        except BaseException as error:
            span.fail(type(error).__name__)
            raise
        finally:
            span.end()

    def _closed(self, charge: Charge, stream: Stream) -> None:
        self._open_jobs.remove(stream.request_id)
        self._plans.closed(stream)
        self._accounting.close(charge, stream)
        self._instruments.closed(stream)
        self._history.closed(stream)
        self._usage.closed(stream)
        ended = outcome(stream)
        log.debug("job ended", request_id=stream.request_id, node=stream.node, outcome=ended)


def _with_key(job: Job) -> Job:
    """The job with the name of the key that asks for it, and the limits of its user's plan."""
    return plans.with_limits(msgspec.structs.replace(job, key=scopes.current.get().name))
