"""/v1/jobs: requests that are answered in the background, whatever becomes of the processes."""

from typing import Annotated, Any

import msgspec
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from ninja import Query, Router

from api.accounts import scopes
from api.accounts.auth import AuthRequest, Key
from api.context import app
from api.errors import ApiError
from api.http.documentation import error_statuses
from api.http.sse import EventStream
from api.jobs import events, store
from api.jobs.models import StoredJob
from api.jobs.schemas import (
    Moment,
    NewJob,
    NewWebhook,
    StoredJobList,
    StoredJobObject,
    StoredStatus,
    expiry,
    stored_job,
)
from api.settings import ENV
from api.webhooks import signature
from api.webhooks.addresses import ForbiddenAddress, check_url

router = Router(tags=["stored jobs"], auth=Key())

MOST_LISTED = 100
_NOT_KEPT = ("stream", "stream_options", "background")  # the result is stored as a whole


@router.post("/jobs", response=StoredJobObject, openapi_extra=error_statuses(403))
async def create_job(request: AuthRequest, body: NewJob) -> StoredJobObject:
    """Stores a request to another endpoint; its result is in the job when it has ended."""
    scopes.current.get().check_path(body.endpoint)
    fields = {name: value for name, value in body.body.items() if name not in _NOT_KEPT}
    model = body.body.get("model")
    secret = None if body.webhook is None else _checked(body.webhook)
    job = await store.create(
        request.auth,
        endpoint=body.endpoint,
        body=msgspec.json.encode(fields),
        model=model.replace("\x00", "")[:255] if isinstance(model, str) else "",
        priority=body.priority,
        expires=expiry(body.deadline, ENV.job_seconds),
        webhook_url=body.webhook.url if body.webhook else "",
        webhook_secret=secret or "",
    )
    app().jobs.wake()
    return stored_job(job, secret=secret)


def _checked(webhook: NewWebhook) -> str:
    """The webhook's secret. Raises ApiError 400."""
    try:
        check_url(webhook.url, app().webhooks.sender.exempt)
    except ForbiddenAddress as error:
        field = "webhook.url"
        raise ApiError(400, f"{field}: {error}", field=field, code="invalid_value") from error
    secret = webhook.secret or signature.new_secret()
    try:
        signature.key_of(secret)
    except ValueError as error:
        field = "webhook.secret"
        raise ApiError(400, f"{field}: {error}", field=field, code="invalid_value") from error
    return secret


@router.get("/jobs", response=StoredJobList)
async def list_jobs(
    request: AuthRequest,
    status: StoredStatus | None = None,
    model: str | None = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
) -> StoredJobList:
    """My stored jobs, newest first, without their results. `after`: the last one of a page."""
    last = None if after is None else await store.find(request.auth, after, "after")
    rows = await store.listed(
        request.auth,
        status=status,
        model=model,
        created_after=created_after,
        created_before=created_before,
        after=last,
        limit=limit + 1,
    )
    return StoredJobList.page([stored_job(row, with_result=False) for row in rows], limit)


@router.get("/jobs/{job_id}", response=StoredJobObject)
async def read_job(request: AuthRequest, job_id: str) -> StoredJobObject:
    """One of my stored jobs, with its result."""
    return stored_job(await store.find(request.auth, job_id))


@router.delete("/jobs/{job_id}", response=StoredJobObject, openapi_extra=error_statuses(409))
async def cancel_job(request: AuthRequest, job_id: str) -> StoredJobObject:
    """Cancels a stored job wherever it is."""
    job = await store.find(request.auth, job_id)
    if not await store.cancel(job) and job.status != "cancelled":
        message = f"this job cannot be cancelled: it is {job.status}"
        raise ApiError(409, message, code="not_cancellable")
    app().jobs.wake()
    return stored_job(await store.find(request.auth, job_id))


_EVENTS: dict[str, Any] = {
    "responses": {
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "A reader with Last-Event-ID: end has everything."},
    }
}


@router.get("/jobs/{job_id}/events", openapi_extra=_EVENTS)
async def read_events(request: AuthRequest, job_id: str) -> HttpResponseBase:
    """How a stored job goes on, as server-sent events; `Last-Event-ID` resumes them."""
    job = await store.find(request.auth, job_id)
    position = events.position_of(request.META.get("HTTP_LAST_EVENT_ID"))
    if position is None:
        return HttpResponse(status=204)
    counted = await app().answer_streams.open(request.auth.pk, (StoredJob._meta.label, job.pk))
    return EventStream(events.events(job, position), counted, endless=True)
