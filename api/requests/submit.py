"""Jobs on their way to the broker: request ids, and refusals as HTTP errors."""

import time
import uuid
from functools import partial

import msgspec
import structlog

from api import broker
from api.accounts.models import User
from api.catalog import catalog
from api.errors import ApiError
from api.http.parsing import MAX_ECHOED
from api.requests import concurrency_limit as entrance
from api.requests.accounting import ledger
from api.requests.active import followed
from api.requests.admission import backlog
from api.requests.waiting_jobs import waiting_jobs
from api.settings import ENV
from broker.client import NoTree, Unavailable
from broker.stream import Stream
from broker.wire import ChatMessage, Failed, Job, JobClass, Sampling

log = structlog.get_logger("canopy.api")

_STATUS = {
    "invalid": 400,
    "too_long": 400,
    "expired": 504,
    "no_node": 503,
    "engine": 500,
    "given_up": 500,
    "internal": 500,
}
_CODES = {
    "too_long": "context_length_exceeded",
    "invalid": "invalid_request",
    "expired": "deadline_exceeded",
}


# What the chat page and /arranca/ use: less surprising than a model's raw distribution.
CONVERSATION = Sampling(temperature=0.7, top_p=0.95)


def new_request_id() -> str:
    """A fresh request id."""
    return uuid.uuid4().hex


def chat_job(
    model: str,
    messages: list[ChatMessage],
    sampling: Sampling,
    user: User,
    *,
    seconds_left: float | None = None,
    job_class: JobClass = "interactive",
    truncate: bool = False,
) -> Job:
    """A job that continues a dialogue. `truncate`: its oldest turns may be left out if they do not fit."""
    return Job(
        request_id=new_request_id(),
        model=model,
        reply_to="",  # the client fills it in
        created=time.time(),
        messages=tuple(messages),
        truncate=truncate,
        sampling=sampling,
        user=user.get_username(),
        job_class=job_class,
        share=user.share,
        seconds_left=seconds_left,
    )


def prompt_job(
    model: str,
    prompt: str,
    sampling: Sampling,
    user: User,
    *,
    seconds_left: float | None = None,
    job_class: JobClass = "interactive",
) -> Job:
    """A job that continues a text."""
    return Job(
        request_id=new_request_id(),
        model=model,
        reply_to="",
        created=time.time(),
        prompt=prompt,
        sampling=sampling,
        user=user.get_username(),
        job_class=job_class,
        share=user.share,
        seconds_left=seconds_left,
    )


def choices(job: Job, count: int) -> list[Job]:
    """The job and others that ask for the same: with its seed, the next one, and so on, if it has one."""
    others = [
        msgspec.structs.replace(
            job, request_id=new_request_id(), sampling=_next_seed(job.sampling, number)
        )
        for number in range(1, count)
    ]
    return [job, *others]


def _next_seed(sampling: Sampling, number: int) -> Sampling:
    if sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + number + 2**63) % 2**64 - 2**63)


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
        raise await _no_tree(job.model) from None
    except Unavailable as error:
        message = f"the service cannot take requests now: {error}; see ./canopy doctor or docs/operations.md"
        raise ApiError(503, message, code="unavailable") from error


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
    entrance.submitted()
    stream.when_begun(partial(waiting_jobs.remove, job.request_id))
    stream.when_closed(partial(ledger.close, charge))
    followed.add(stream)
    return stream


def failure(frame: Failed, prompt_field: str) -> ApiError:
    """A job's failure as a refusal; `prompt_field`: what to blame for a prompt that is too long."""
    status = 503 if frame.retryable and frame.code != "expired" else _STATUS[frame.code]
    field = prompt_field if frame.code == "too_long" else None
    message = f"{field}: {frame.message}" if field else frame.message
    return ApiError(
        status,
        message,
        field=field,
        code=_CODES.get(frame.code, frame.code),
        request_id=frame.request_id,
    )


async def _no_tree(model: str) -> ApiError:
    models = await catalog.models()
    if model in models:
        return ApiError(
            503, f"the tree of model {model!r} is not up", field="model", code="no_tree"
        )
    have = ", ".join(models) or "none"
    return ApiError(
        404,
        f"model: there is no model {model[:MAX_ECHOED]!r} here; there are: {have}",
        field="model",
        code="model_not_found",
    )
