"""What /v1/jobs takes and answers."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from django.utils import timezone
from ninja import Schema
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from api.environment import LONGEST_JOB
from api.errors import ApiError
from api.http.listing import Listing
from api.http.parsing import Body, Integer
from api.jobs.models import JobStatus, StoredJob
from broker.wire import JobClass

JobEndpoint = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
]
StoredStatus = Literal["queued", "running", "completed", "failed", "cancelled", "expired"]


def _moment(value: Any) -> Any:
    """Bodies are decoded before they are validated, and a strict model takes no text for a time."""
    if not isinstance(value, str):
        raise PydanticCustomError("moment", "must be a time in ISO 8601")
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise PydanticCustomError("moment", "must be a time in ISO 8601") from None


def _in_utc(moment: datetime) -> datetime:
    """Raises PydanticCustomError for one that is none in UTC, which the database needs."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("moment", "must be in the years 1 to 9999") from None


Deadline = Annotated[datetime, BeforeValidator(_moment)]
Moment = Annotated[datetime, AfterValidator(_in_utc)]  # of a query


class NewWebhook(Body):
    """Where to send the job when it has ended."""

    url: Annotated[str, Field(min_length=1, max_length=2000)]
    secret: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="whsec_ and base64, or any text; without one, one is made"
    )


class NewJob(Body):
    """A request to be answered in the background."""

    endpoint: JobEndpoint
    body: dict[str, Any]
    priority: JobClass = "interactive"
    deadline: Annotated[Integer, Field(ge=1, le=int(LONGEST_JOB))] | Deadline | None = Field(
        default=None, description="seconds from now, or a time in ISO 8601; at most a day from now"
    )
    webhook: NewWebhook | None = None


class JobWebhook(Schema):
    """What became of a job's webhook. `secret`: only in the response that makes the job."""

    url: str
    status: str | None
    attempts: int
    error: str | None
    secret: str | None = None


class JobResult(Schema):
    """The endpoint's response."""

    status_code: int
    body: Any


class JobError(Schema):
    """Why there is no result."""

    code: str
    message: str


class StoredJobObject(Schema):
    """A stored job as its user sees it.

    `position` and `estimated_start`: while it is queued; `trail`: the nodes that it ran on.
    """

    id: str
    object: Literal["job"] = "job"
    endpoint: str
    model: str | None
    priority: str
    status: StoredStatus
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    request_id: str | None
    position: int | None
    estimated_start: datetime | None
    attempts: int
    trail: list[dict[str, Any]]
    result: JobResult | None
    error: JobError | None
    webhook: JobWebhook | None


class StoredJobList(Listing):
    """A page of stored jobs, without their results."""

    data: list[StoredJobObject]


_ENDINGS = {
    JobStatus.CANCELLED: JobError(code="cancelled", message="the job was cancelled"),
    JobStatus.EXPIRED: JobError(code="deadline_exceeded", message="its deadline passed"),
}


def stored_job(
    job: StoredJob, *, with_result: bool = True, secret: str | None = None
) -> StoredJobObject:
    """A row as its user sees it."""
    result = None
    if with_result and job.reply is not None and job.reply_status is not None:
        body = msgspec.json.decode(bytes(job.reply))
        result = JobResult(status_code=job.reply_status, body=body)
    return StoredJobObject(
        id=job.public_id,
        endpoint=job.endpoint,
        model=job.model or None,
        priority=job.priority,
        status=job.status,
        created_at=job.created,
        expires_at=job.expires,
        ended_at=job.ended,
        request_id=job.request_id or None,
        position=job.position,
        estimated_start=job.starts,
        attempts=job.attempts,
        trail=job.trail or [],
        result=result,
        error=_ENDINGS.get(JobStatus(job.status)),
        webhook=_webhook(job, secret),
    )


def _webhook(job: StoredJob, secret: str | None) -> JobWebhook | None:
    if not job.webhook_url:
        return None
    return JobWebhook(
        url=job.webhook_url,
        status=job.webhook or None,
        attempts=job.webhook_attempts,
        error=job.webhook_error or None,
        secret=secret,
    )


def expiry(deadline: int | datetime | None, usual: float) -> datetime:
    """When a job that is made now expires. Raises ApiError 400."""
    now = timezone.now()
    latest = now + timedelta(seconds=LONGEST_JOB)
    if deadline is None:
        return now + timedelta(seconds=usual)
    if isinstance(deadline, int):
        return now + timedelta(seconds=deadline)
    if deadline.tzinfo is None or not now < deadline <= latest:
        message = "deadline: must be a time with a time zone, at most a day from now"
        raise ApiError(400, message, field="deadline", code="invalid_value")
    return deadline
