"""Answers for those who wait for them: begun, read to their end."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from io import BytesIO

from django.http import HttpRequest

from api.accounts.auth import AuthRequest
from api.answers import following
from api.context import app
from api.errors import ApiError
from api.http import sse
from api.idempotency import attach as idempotency
from api.requests.build import choices
from api.requests.errors import job_failure
from api.requests.merge import Merged
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, TokenLogprob, Waiting


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer on its way to one reader. `frames`: None in silence. Closing `source` ends the reading, and the job
    with it if nobody but this reader wants it.
    """

    request_id: str
    created: int  # Unix seconds
    frames: AsyncIterator[AnyFrame | None]
    source: sse.Closable
    others: tuple[str, ...] = ()  # request ids of further choices, which are among the frames
    waiting: str | None = None  # why nothing will come at once, if that is known already
    replayed: bool = False  # begun by an earlier request with the same Idempotency-Key

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Of all choices, in their order."""
        return (self.request_id, *self.others)

    def headers(self, waited: str | None = None) -> dict[str, str]:
        """The response headers that identify a request."""
        found = {"X-Request-Id": self.request_id}
        if self.replayed:
            found["Idempotent-Replay"] = "true"
        if waited:
            found["X-Canopy-Waited"] = " ".join(waited.split()).encode("ascii", "replace").decode()
        return found


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. `waited`: why it did not start at once, if it had to wait."""

    text: str
    end: Finished
    waited: str | None
    logprobs: tuple[TokenLogprob, ...] = ()


async def begin_choices(request: AuthRequest, job: Job, count: int) -> Begun:
    """Begins `count` answers to the same question, read as one. The request's body is gone then. Raises ApiError."""
    if count == 1:
        return await begin(request, job)
    if idempotency.key_of(request) is not None:
        raise _not_kept("n")
    jobs = choices(job, count)
    waiting = app().catalog.nobody_serves(job.model)
    merged = Merged(await app().submitter.submit_all(jobs))
    _release_body(request)
    others = tuple(each.request_id for each in jobs[1:])
    return Begun(job.request_id, int(job.created), sse.ticking(merged), merged, others, waiting)


async def begin(request: AuthRequest, job: Job) -> Begun:
    """Begins the answer, or finds the one that the request's Idempotency-Key names. The request's body is gone then.

    Raises ApiError.
    """
    key = idempotency.key_of(request)
    if key is not None and job.sampling.logprobs is not None:
        raise _not_kept("logprobs")
    if key is None:
        waiting = app().catalog.nobody_serves(job.model)
        stream = await app().submitter.submit(job)
        _release_body(request)
        return Begun(job.request_id, int(job.created), sse.ticking(stream), stream, waiting=waiting)
    kept, replayed = await idempotency.attach(request, key, job)
    _release_body(request)
    frames = following.follow(kept)
    return Begun(kept.request_id, int(kept.created.timestamp()), frames, frames, replayed=replayed)


async def complete(begun: Begun, prompt_field: str) -> Answer:
    """Reads the answer to its end; being cancelled cancels the job, unless it has an Idempotency-Key.

    Raises ApiError if the job fails; `prompt_field` is blamed for a prompt that is too long.
    """
    [answer] = await complete_choices(begun, prompt_field)
    return answer


async def complete_choices(begun: Begun, prompt_field: str) -> list[Answer]:
    """The same for all choices. Raises ApiError if one job fails; the others are cancelled."""
    waited = begun.waiting
    deltas: dict[str, list[Delta]] = {request_id: [] for request_id in begun.request_ids}
    ends: dict[str, Finished] = {}
    async with aclosing(begun.source):
        async for frame in begun.frames:
            match frame:
                case Delta():
                    deltas[frame.request_id].append(frame)
                case Waiting():
                    waited = frame.reason
                case Failed():
                    raise job_failure(frame, prompt_field)
                case Finished():
                    ends[frame.request_id] = frame
    if len(ends) < len(deltas):
        raise AssertionError("a stream ended without an end frame")
    return [_answer(told, ends[request_id], waited) for request_id, told in deltas.items()]


def _release_body(request: HttpRequest) -> None:
    """While a request waits for its answer, the job has the texts: their bytes would take the same memory again."""
    request._body = b""
    request._stream = BytesIO()


def _answer(told: list[Delta], end: Finished, waited: str | None) -> Answer:
    text = "".join(delta.text for delta in told)
    return Answer(text, end, waited, tuple(each for delta in told for each in delta.logprobs))


def _not_kept(field: str) -> ApiError:
    return ApiError(
        400,
        f"{field}: not with an {idempotency.HEADER}; the text of one answer is all that is kept",
        field=field,
    )
