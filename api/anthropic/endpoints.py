"""POST /v1/messages and /v1/messages/count_tokens."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from ninja import Router

from api import errors
from api.accounts.auth import AuthRequest, Key
from api.anthropic.blocks import Event, Message
from api.anthropic.schemas import CountRequest, MessagesRequest, TokenCount
from api.errors import ApiError
from api.http import sse
from api.http.documentation import JOB_OPERATION
from api.http.sse import EventStream
from api.requests import position
from api.requests.build import as_whole, chat_job
from api.requests.complete import RunningAnswer, start
from api.requests.deadline import seconds_left
from api.requests.errors import job_failure
from api.requests.tokenize import count_tokens
from broker.wire import Failed, Job, Sampling, Waiting

PATH = "/v1/messages"
router = Router(tags=["Anthropic-compatible"], auth=Key())


@router.post("/messages", openapi_extra=JOB_OPERATION)
async def messages(request: AuthRequest, body: MessagesRequest) -> HttpResponseBase:
    """Continues a dialogue. With `stream`, the answer comes as server-sent events."""
    job = as_whole(_job(request, body, body.sampling()), body.stream)
    running = await start(request, job)
    message = Message(running.request_id, job)
    if body.stream:
        return EventStream(_events(running, message), running.source, headers=_headers(running))
    waited = await _read(running, message)
    return HttpResponse(
        msgspec.json.encode(message.whole()),
        content_type="application/json",
        headers=_headers(running, waited),
    )


@router.post("/messages/count_tokens", response=TokenCount, openapi_extra=JOB_OPERATION)
async def count(request: AuthRequest, body: CountRequest) -> dict[str, int]:
    """How many tokens the prompt of such a request has, with its tools: a node counts them."""
    job = _job(request, body, Sampling(max_tokens=0))
    return {"input_tokens": await count_tokens(request, job)}


def _job(request: AuthRequest, body: CountRequest, sampling: Sampling) -> Job:
    job = chat_job(
        body.model,
        body.dialogue(),
        sampling,
        request.auth,
        seconds_left=seconds_left(request),
    )
    return msgspec.structs.replace(
        body.tool_use().apply(job),
        continue_final_message=body.is_prefilled,
        reasoning_effort=body.effort,
    )


def _headers(running: RunningAnswer, waited: str | None = None) -> dict[str, str]:
    return {**running.headers(waited), "Request-Id": running.request_id}


async def _read(running: RunningAnswer, message: Message) -> str | None:
    """Reads the answer to its end; returns why it had to wait. Raises ApiError if it fails."""
    waited = running.waiting
    async with aclosing(running.source):
        async for frame in running.frames:
            match frame:
                case None:
                    continue
                case Waiting():
                    waited = frame.reason
                case Failed():
                    raise _failure(frame)
                case _:
                    message.take(frame)
    return waited


async def _events(running: RunningAnswer, message: Message) -> AsyncGenerator[bytes]:
    """The answer as Anthropic's stream of events. A ping says that it is still waited for."""
    yield _encoded(message.opening())
    if running.waiting:
        yield sse.comment(f"waiting: {running.waiting}")
    async for frame in running.frames:
        match frame:
            case None:
                yield _encoded([{"type": "ping"}])
            case Waiting():
                yield sse.comment(f"waiting: {position.describe(frame)}")
            case Failed():
                yield sse.event("error", errors.body(PATH, _failure(frame)))
                return
            case _:
                told = message.take(frame)
                if told:
                    yield _encoded(told)
        if message.ended:
            return


def _encoded(events: list[Event]) -> bytes:
    return b"".join(sse.event(event["type"], event) for event in events)


def _failure(frame: Failed) -> ApiError:
    """Some clients shorten a dialogue by themselves when they read these words."""
    error = job_failure(frame, "messages")
    if frame.code == "too_long":
        error.message = f"prompt is too long: {frame.message}"
    return error
