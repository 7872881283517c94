"""GET and DELETE /api/jobs/ID: where a job is, and its end wherever it is."""

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

State = Literal[
    "waiting", "running", "done", "failed"
]  # at its end: while its reader has not read all of it
_LONGEST_ID = 64


class Job(Schema):
    """A job as its owner sees it. `node` and `attempt`: of its newest run; `waiting`: why it does not run; `position`
    and `estimated_start`: in the line, while it stands there.
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
    stream = app().active.get(request_id)
    if len(request_id) > _LONGEST_ID or (stream is not None and not _is_mine(stream, request)):
        raise _no_such_job()
    if not app().client.connected:
        raise ApiError(
            503,
            "the job cannot be cancelled now: the broker does not take messages",
            code="unavailable",
        )
    app().client.cancel(request_id, request.auth.get_username())
    return Status(202 if stream is None else 204, None)


def describe(stream: Stream) -> Job:
    """The job at this moment."""
    job, state = stream.job, _state(stream)
    in_line = state == "waiting"
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
        position=stream.position if in_line else None,
        estimated_start=_moment(stream.starts) if in_line else None,
        tokens=stream.tokens,
    )


def _from_monotonic(moment: float | None) -> datetime | None:
    """A moment of the monotonic clock for people."""
    return None if moment is None else _moment(time.time() + moment - time.monotonic())


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _state(stream: Stream) -> State:
    if stream.end is not None:
        return "failed" if isinstance(stream.end, Failed) else "done"
    return "running" if stream.started and not stream.waiting else "waiting"


def _is_mine(stream: Stream, request: AuthRequest) -> bool:
    return stream.job.user == request.auth.get_username()


def _no_such_job() -> ApiError:
    return ApiError(404, "there is no such job of yours here")
