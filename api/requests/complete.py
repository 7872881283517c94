"""Answers for clients that wait for them: started, then read to their end."""

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
from api.idempotency.attach import HEADER, attach, key_of
from api.requests.build import choices
from api.requests.errors import job_failure
from api.requests.merge import Merged
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, TokenLogprob, Waiting


@dataclass(frozen=True, slots=True)
class RunningAnswer:
    """An answer on its way to one reader. `frames` yields None in silence.

    Closing `source` ends the reading, and the job with it unless it has an Idempotency-Key.
    """

    request_id: str
    created: int  # Unix seconds
    frames: AsyncIterator[AnyFrame | None]
    source: sse.Closable
    others: tuple[str, ...] = ()  # request ids of further choices, which are among the frames
    waiting: str | None = None  # why the job must wait, if that is known already
    replayed: bool = False  # started by an earlier request with the same Idempotency-Key

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Of all choices, in their order."""
        return (self.request_id, *self.others)

    def headers(self, waited: str | None = None) -> dict[str, str]:
        """The response headers that identify a request."""
        headers = {"X-Request-Id": self.request_id}
        if self.replayed:
            headers["Idempotent-Replay"] = "true"
        if waited:
            one_line = " ".join(waited.split())
            headers["X-Canopy-Waited"] = one_line.encode("ascii", "replace").decode()
        return headers


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. `waited`: why it did not start at once, if it had to wait."""

    text: str
    end: Finished
    waited: str | None
    logprobs: tuple[TokenLogprob, ...] = ()


async def start(request: AuthRequest, job: Job) -> RunningAnswer:
    """Starts the answer, or attaches to the one that the request's Idempotency-Key names.

    The request's body is released then. Raises ApiError.
    """
    key = key_of(request)
    if key is None:
        waiting = app().catalog.nobody_serves(job.model)
        stream = await app().submitter.submit(job)
        _release_body(request)
        frames = sse.ticking(stream)
        return RunningAnswer(job.request_id, int(job.created), frames, stream, waiting=waiting)
    if job.sampling.logprobs is not None:
        raise _not_with_a_key("logprobs")
    stored, replayed = await attach(request, key, job)
    _release_body(request)
    reader = following.follow(stored)
    created = int(stored.created.timestamp())
    return RunningAnswer(stored.request_id, created, reader, reader, replayed=replayed)


async def start_choices(request: AuthRequest, job: Job, count: int) -> RunningAnswer:
    """Starts `count` answers to one question, read as one. See `start`."""
    if count == 1:
        return await start(request, job)
    if key_of(request) is not None:
        raise _not_with_a_key("n")
    jobs = choices(job, count)
    waiting = app().catalog.nobody_serves(job.model)
    merged = Merged(await app().submitter.submit_all(jobs))
    _release_body(request)
    others = tuple(job.request_id for job in jobs[1:])
    frames = sse.ticking(merged)
    return RunningAnswer(job.request_id, int(job.created), frames, merged, others, waiting)


async def complete(running: RunningAnswer, prompt_field: str) -> Answer:
    """Reads the answer to its end. Cancelling this cancels a job without an Idempotency-Key.

    Raises ApiError if the job fails; `prompt_field` is the request field of its prompt.
    """
    [answer] = await complete_choices(running, prompt_field)
    return answer


async def complete_choices(running: RunningAnswer, prompt_field: str) -> list[Answer]:
    """The same for all choices. If one job fails, the others are cancelled."""
    waited = running.waiting
    deltas: dict[str, list[Delta]] = {request_id: [] for request_id in running.request_ids}
    ends: dict[str, Finished] = {}
    async with aclosing(running.source):
        async for frame in running.frames:
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
    return [_answer(deltas[request_id], ends[request_id], waited) for request_id in deltas]


def _answer(deltas: list[Delta], end: Finished, waited: str | None) -> Answer:
    text = "".join(delta.text for delta in deltas)
    logprobs: list[TokenLogprob] = []
    for delta in deltas:
        logprobs.extend(delta.logprobs)
    return Answer(text, end, waited, tuple(logprobs))


def _release_body(request: HttpRequest) -> None:
    """The job has the texts: while it waits, their bytes must not take the same memory again."""
    request._body = b""
    request._stream = BytesIO()


def _not_with_a_key(field: str) -> ApiError:
    message = f"{field}: not with an {HEADER}; only the text of one answer is stored"
    return ApiError(400, message, field=field, code="invalid_value")
