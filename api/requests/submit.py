"""Jobs on their way to the broker: admitted, charged, published."""

from functools import partial

import msgspec

from api.catalog import Catalog
from api.requests import concurrency_limit, errors
from api.requests.accounting import TokenAccounting
from api.requests.active import ActiveRequests
from api.requests.admission import Backlog
from api.requests.waiting_jobs import WaitingJobs
from broker.client import Client
from broker.errors import NoTree, Unavailable
from broker.stream import Stream
from broker.wire import Job


class Submitter:
    """Submits jobs. `job_seconds`: the deadline of a job that has none."""

    def __init__(
        self,
        *,
        client: Client,
        catalog: Catalog,
        backlog: Backlog,
        waiting_jobs: WaitingJobs,
        accounting: TokenAccounting,
        active: ActiveRequests,
        job_seconds: float,
    ) -> None:
        self._client = client
        self._catalog = catalog
        self._backlog = backlog
        self._waiting_jobs = waiting_jobs
        self._accounting = accounting
        self._active = active
        self._job_seconds = job_seconds

    async def submit_all(self, jobs: list[Job]) -> list[Stream]:
        """Submits all jobs, or none. Raises ApiError as `submit` does."""
        streams: list[Stream] = []
        try:
            for job in jobs:
                streams.append(await self.submit(job))
        except BaseException:
            for stream in streams:
                await stream.aclose()
            raise
        return streams

    async def submit(self, job: Job) -> Stream:
        """Publishes the job if it may wait.

        Raises ApiError 404 (no such model), 429 (the backlog is full) or 503.
        """
        await self._backlog.admit(job)
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
        """Publishes the job, charged to its user, without a limit. Raises NoTree or Unavailable."""
        if job.seconds_left is None:
            job = msgspec.structs.replace(job, seconds_left=self._job_seconds, deadline=None)
        charge = self._accounting.charge(job)
        self._waiting_jobs.add(job)  # before the broker confirms: a burst must not pass the limit
        try:
            stream = await self._client.submit(
                msgspec.structs.replace(job, work=charge.cost, expected=charge.expected)
            )
        except BaseException:
            self._accounting.refund(charge)
            self._waiting_jobs.remove(job.request_id)
            raise
        concurrency_limit.release_permit()
        stream.when_begun(partial(self._waiting_jobs.remove, job.request_id))
        stream.when_closed(partial(self._accounting.close, charge))
        self._active.add(stream)
        return stream
