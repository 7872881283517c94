"""Jobs on their way to the broker: admitted, charged, published."""

from functools import partial

import msgspec

from api import broker
from api.catalog import catalog
from api.requests import concurrency_limit, errors
from api.requests.accounting import ledger
from api.requests.active import followed
from api.requests.admission import backlog
from api.requests.waiting_jobs import waiting_jobs
from api.settings import ENV
from broker.client import NoTree, Unavailable
from broker.stream import Stream
from broker.wire import Job


async def submit_all(jobs: list[Job]) -> list[Stream]:
    """Hands all jobs to the broker, or none. Raises ApiError as `submit` does."""
    streams: list[Stream] = []
    try:
        for job in jobs:
            streams.append(await submit(job))
    except BaseException:
        for stream in streams:
            await stream.aclose()
        raise
    return streams


async def submit(job: Job) -> Stream:
    """Hands the job to the broker, if one more may wait.

    Raises ApiError 404 (no such model, with those there are), 429 (too many wait) or 503.
    """
    await backlog.admit(job)
    try:
        return await publish(job)
    except NoTree:
        models = await catalog.models()
        if job.model in models:
            raise errors.tree_down(job.model) from None
        raise errors.no_such_model(job.model, models) from None
    except Unavailable as error:
        raise errors.broker_unavailable(error) from error


async def publish(job: Job) -> Stream:
    """Hands the job to the broker, however many wait; its user is charged. One without a deadline gets the ordinary.

    Raises NoTree or Unavailable.
    """
    if job.seconds_left is None:
        job = msgspec.structs.replace(job, seconds_left=ENV.job_seconds, deadline=None)
    charge = ledger.charge(job)
    waiting_jobs.add(job)  # from now on, also while the broker is waited for
    try:
        stream = await broker.client().submit(
            msgspec.structs.replace(job, work=charge.work, expected=charge.expected)
        )
    except BaseException:
        ledger.undo(charge)
        waiting_jobs.remove(job.request_id)
        raise
    concurrency_limit.submitted()
    stream.when_begun(partial(waiting_jobs.remove, job.request_id))
    stream.when_closed(partial(ledger.close, charge))
    followed.add(stream)
    return stream
