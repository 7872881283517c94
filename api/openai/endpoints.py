"""GET /v1/models, POST /v1/chat/completions and /v1/completions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from ninja import Router

from api.accounts.auth import AuthRequest, Key
from api.context import app
from api.errors import ApiError
from api.http.documentation import JOB_OPERATION
from api.http.parsing import served_model
from api.http.sse import EventStream
from api.openai import shapes, text_completion
from api.openai.capabilities import capabilities
from api.openai.completion_body import Completion
from api.openai.schemas import ChatCompletion, Generation
from api.openai.streaming import chunks
from api.requests.build import as_whole, chat_job
from api.requests.complete import complete_choices, start_choices
from api.requests.deadline import seconds_left
from api.requests.errors import no_such_model
from api.settings import MAX_BODY
from broker.encoding import encode
from broker.wire import Job

MAX_COPIES_BYTES = 8 * MAX_BODY  # of all jobs that one request starts

router = Router(tags=["OpenAI-compatible"], auth=Key())


@router.get("/models")
async def models(request: AuthRequest) -> dict[str, Any]:
    """Every model there is."""
    names = await app().catalog.models()
    lengths = app().catalog.context_lengths()
    listed = [_model(name, lengths.get(name)) for name in names]
    return {
        "object": "list",
        "data": listed,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
        "has_more": False,
    }


@router.get("/models/{path:name}")
async def model(request: AuthRequest, name: str) -> dict[str, Any]:
    """One model."""
    name = served_model(name)
    names = await app().catalog.models()
    if name not in names:
        raise no_such_model(name, names)
    return _model(name, app().catalog.context_lengths().get(name))


def _model(name: str, context_length: int | None) -> dict[str, Any]:
    return shapes.model(
        name,
        context_length,
        capabilities(app().catalog.serving(name)),
        paused=name in app().intake.paused(),
        tasks=app().catalog.tasks(name),
    )


@router.post("/chat/completions", openapi_extra=JOB_OPERATION)
async def chat_completions(request: AuthRequest, body: ChatCompletion) -> HttpResponseBase:
    """Continues a dialogue. With `stream`, the answer comes as server-sent events."""
    job = chat_job(
        body.model,
        [message.to_wire() for message in body.messages],
        body.sampling(),
        request.auth,
        seconds_left=seconds_left(request),
        job_class=body.job_class,
    )
    job = body.in_template(body.tool_use.apply(job), prefill=body.prefills)
    if body.reasoning_effort is not None:
        job = msgspec.structs.replace(job, reasoning_effort=body.reasoning_effort)
    shape = partial(shapes.ChatShape, functions=body.wants_functions)
    return await _answer(request, job, body, shape, "messages")


@router.post("/completions", openapi_extra=JOB_OPERATION)
async def completions(request: AuthRequest, body: Completion) -> HttpResponseBase:
    """Continues texts or tokens. With `stream`, the answers come as server-sent events."""
    return await text_completion.answer(request, body)


async def _answer(
    request: AuthRequest,
    job: Job,
    body: Generation,
    make_shape: Callable[..., shapes.Shape],
    prompt_field: str,
) -> HttpResponseBase:
    count = body.n or 1
    _check_copies(job, count)
    running = await start_choices(request, as_whole(job, body.stream), count)
    shape = make_shape(
        running.request_id,
        job.model,
        running.created,
        body.wants_usage,
        body.wants_continuous_usage,
        body.tier,
    )
    if body.stream:
        events = chunks(running, shape, prompt_field)
        return EventStream(events, running.source, headers=running.headers())
    answers = await complete_choices(running, prompt_field)
    return HttpResponse(
        msgspec.json.encode(shape.whole(answers)),
        content_type="application/json",
        headers=running.headers(answers[0].waited),
    )


def _check_copies(job: Job, count: int) -> None:
    """Each choice is a job with the whole prompt. Raises ApiError 400 if all are too large."""
    if count == 1:
        return
    size = len(encode(job))
    if size * count > MAX_COPIES_BYTES:
        most = MAX_COPIES_BYTES // size
        message = f"n: at most {most} choices with a prompt of this length"
        raise ApiError(400, message, field="n", code="invalid_value")
