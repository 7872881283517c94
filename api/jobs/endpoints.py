"""GET and DELETE /api/jobs/ID: a job's state, and its cancellation wherever it is."""

import time
from datetime import UTC, datetime
from typing import Any, Literal

from ninja import Router, Schema, Status

from api.accounts.auth import AuthRequest, Member
from api.context import app
from api.errors import ApiError
from broker.stream import Stream
from broker.wire import Failed, JobClass

router = Router(tags=["jobs"], auth=Member())

# The last two only until the reader has read the answer's end.
State = Literal["waiting", "running", "done", "failed"]
_LONGEST_ID = 64


class Job(Schema):
    """A job as its owner sees it.

    `node` and `attempt`: of its newest run; `waiting`: why it does not run; `position` and
    `estimated_start`: while it is queued.
    """

    request_id: str
    model: str
    job_class: JobClass
    state: State
    created: datetime
    deadline: datetime | None
    node: str | None
    attempt: int
    waiting: str | None
    position: int | None  # from 1
    estimated_start: datetime | None
    tokens: int  # of the answer so far


@router.get("/{request_id}", response=Job)
async def read(request: AuthRequest, request_id: str) -> Job:
    """One of my jobs, if this process reads its answer."""
    stream = app().active.get(request_id)
    if stream is None or not _is_mine(stream, request):
        raise _no_such_job()
    return describe(stream)


@router.delete("/{request_id}", response={202: None, 204: None})
async def cancel(request: AuthRequest, request_id: str) -> Status[Any]:
    """Cancels one of my jobs wherever it is; its reader gets what was written so far.

    202 if another process reads it: then the nodes are told, and end it if it is mine.
    """
    if len(request_id) > _LONGEST_ID:
        raise _no_such_job()
    stream = app().active.get(request_id)
    if stream is not None and not _is_mine(stream, request):
        raise _no_such_job()
    client = app().client
    if not client.connected:
        message = "the job cannot be cancelled now: the broker does not take messages"
        raise ApiError(503, message, code="unavailable")
    client.cancel(request_id, request.auth.get_username())
    return Status(202 if stream is None else 204, None)


def describe(stream: Stream) -> Job:
    """The job at this moment."""
    job, state = stream.job, _state(stream)
    position, starts = None, None
    if state == "waiting":
        position, starts = stream.position, stream.starts
    return Job(
        request_id=job.request_id,
        model=job.model,
        job_class=job.job_class,
        state=state,
        created=datetime.fromtimestamp(job.created, UTC),
        deadline=_from_monotonic(stream.expires),
        node=stream.node or None,
        attempt=stream.attempt,
        waiting=stream.waiting or None,
        position=position,
        estimated_start=_from_epoch(starts),
        tokens=stream.tokens,
    )


def _from_monotonic(moment: float | None) -> datetime | None:
    """A moment of time.monotonic() as a date."""
    if moment is None:
        return None
    return _from_epoch(time.time() + moment - time.monotonic())


def _from_epoch(seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC)


def _state(stream: Stream) -> State:
    if isinstance(stream.end, Failed):
        return "failed"
    if stream.end is not None:
        return "done"
    return "running" if stream.started and not stream.waiting else "waiting"


def _is_mine(stream: Stream, request: AuthRequest) -> bool:
    return stream.job.user == request.auth.get_username()


def _no_such_job() -> ApiError:
    return ApiError(404, "there is no such job of yours here", code="not_found")
