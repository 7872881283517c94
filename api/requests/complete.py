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
from api.requests.journey import Place, client_id_of, place_of, trail_header
from api.requests.merge import Merged
from api.requests.reading import AnswerReader, Collected, EndReason
from broker.stream import Stream
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, TokenLogprob, ToolCall, Waiting


@dataclass(frozen=True, slots=True)
class RunningAnswer:
    """An answer on its way to one reader. `frames` yields None in silence.

    Closing `source` ends the reading, and the job with it unless it has an Idempotency-Key.
    """

    job: Job  # the first choice's; how its text is read depends on it
    request_id: str
    created: int  # Unix seconds
    frames: AsyncIterator[AnyFrame | None]
    source: sse.Closable
    others: tuple[str, ...] = ()  # request ids of further choices, which are among the frames
    waiting: str | None = None  # why the job must wait, if that is known already
    replayed: bool = False  # started by an earlier request with the same Idempotency-Key
    stream: Stream | None = None  # the first choice's, if this process reads its job
    place: Place | None = None  # as it was submitted
    client_id: str | None = None  # what the client calls the request

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Of all choices, in their order."""
        return (self.request_id, *self.others)

    def readers(self) -> dict[str, AnswerReader]:
        """What takes the choices apart, by request id: each gets its own frames."""
        return {request_id: AnswerReader(self.job) for request_id in self.request_ids}

    def headers(self, waited: str | None = None) -> dict[str, str]:
        """The response headers that identify a request."""
        headers = {"X-Request-Id": self.request_id}
        if self.client_id is not None:
            headers["X-Client-Request-Id"] = self.client_id
        if self.place is not None:
            headers["X-Canopy-Queue"] = self.place.header()
        if self.stream is not None and self.stream.trail:
            headers["X-Canopy-Trail"] = trail_header(self.stream.trail, self.stream.waits)
        if self.replayed:
            headers["Idempotent-Replay"] = "true"
        if waited:
            one_line = " ".join(waited.split())
            headers["X-Canopy-Waited"] = one_line.encode("ascii", "replace").decode()
        return headers


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. `waited`: why it did not start at once, if it had to wait."""

    text: str  # without reasoning and calls
    end: Finished
    waited: str | None
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    reason: EndReason = "stop"
    reasoning_tokens: int = 0


async def start(request: AuthRequest, job: Job) -> RunningAnswer:
    """Starts the answer, or attaches to the one that the request's Idempotency-Key names.

    The request's body is released then. Raises ApiError.
    """
    key = key_of(request)
    if key is None:
        waiting, place = app().catalog.nobody_serves(job.model), place_of(job)
        stream = await app().submitter.submit(job)
        release_body(request)
        return RunningAnswer(
            job,
            job.request_id,
            int(job.created),
            sse.ticking(stream),
            stream,
            waiting=waiting,
            stream=stream,
            place=place,
            client_id=client_id_of(request),
        )
    if job.sampling.logprobs is not None:
        raise _not_with_a_key("logprobs")
    if job.sampling.prompt_logprobs is not None:
        raise _not_with_a_key("echo" if job.prompt_ids else "prompt_logprobs")
    stored, replayed = await attach(request, key, job)
    release_body(request)
    reader = following.follow(stored)
    created = int(stored.created.timestamp())
    counted = await app().answer_streams.open(request.auth.pk, stored.handle, reader)
    return RunningAnswer(job, stored.request_id, created, reader, counted, replayed=replayed)


async def start_choices(request: AuthRequest, job: Job, count: int) -> RunningAnswer:
    """Starts `count` answers to one question, read as one. See `start`."""
    return await start_jobs(request, choices(job, count), "n")


async def start_jobs(request: AuthRequest, jobs: list[Job], field: str) -> RunningAnswer:
    """Starts several answers, read as one. `field`: of the request, why there are several."""
    job = jobs[0]
    if len(jobs) == 1:
        return await start(request, job)
    if key_of(request) is not None:
        raise _not_with_a_key(field)
    waiting, place = app().catalog.nobody_serves(job.model), place_of(job)
    streams = await app().submitter.submit_all(jobs)
    merged = Merged(streams)
    release_body(request)
    return RunningAnswer(
        job,
        job.request_id,
        int(job.created),
        sse.ticking(merged),
        merged,
        others=tuple(job.request_id for job in jobs[1:]),
        waiting=waiting,
        stream=streams[0],
        place=place,
        client_id=client_id_of(request),
    )


async def complete(running: RunningAnswer, prompt_field: str) -> Answer:
    """Reads the answer to its end. Cancelling this cancels a job without an Idempotency-Key.

    Raises ApiError if the job fails; `prompt_field` is the request field of its prompt.
    """
    [answer] = await complete_choices(running, prompt_field)
    return answer


async def complete_choices(running: RunningAnswer, prompt_field: str) -> list[Answer]:
    """The same for all choices. If one job fails, the others are cancelled."""
    waited = running.waiting
    answers = {request_id: _Growing(reader) for request_id, reader in running.readers().items()}
    async with aclosing(running.source):
        async for frame in running.frames:
            match frame:
                case None:
                    continue
                case Waiting():
                    waited = frame.reason
                case Failed():
                    raise job_failure(frame, prompt_field)
                case _:
                    answers[frame.request_id].take(frame)
    return [answer.whole(waited) for answer in answers.values()]


class _Growing:
    """One answer until it is whole."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._parts = Collected()
        self._logprobs: list[TokenLogprob] = []
        self._end: Finished | None = None

    def take(self, frame: AnyFrame) -> None:
        self._parts.add(self._reader.take(frame))
        if isinstance(frame, Delta):
            self._logprobs.extend(frame.logprobs)
        elif isinstance(frame, Finished):
            self._end = frame

    def whole(self, waited: str | None) -> Answer:
        if self._end is None:
            raise AssertionError("a stream ended without an end frame")
        return Answer(
            self._parts.text,
            self._end,
            waited,
            tuple(self._logprobs),
            self._parts.reasoning,
            self._parts.calls,
            self._reader.reason(self._end),
            self._reader.reasoning_tokens,
        )


def release_body(request: HttpRequest) -> None:
    """The job has the texts: while it waits, their bytes must not take the same memory again."""
    request._body = b""
    request._stream = BytesIO()


def _not_with_a_key(field: str) -> ApiError:
    message = f"{field}: not with an {HEADER}; only the text of one answer is stored"
    return ApiError(400, message, field=field, code="not_with_idempotency_key")
