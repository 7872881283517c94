"""GET /v1/models, POST /v1/chat/completions and /v1/completions."""

from typing import Any

import msgspec
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from ninja import Router

from api.accounts.auth import AuthRequest, Key
from api.context import app
from api.errors import ApiError
from api.http.documentation import JOB_OPERATION
from api.http.sse import EventStream
from api.openai import shapes
from api.openai.schemas import ChatCompletion, Completion, Generation
from api.openai.streaming import chunks
from api.requests import build
from api.requests import complete as completion
from api.requests.deadline import seconds_wanted
from api.requests.errors import no_such_model
from api.settings import MAX_BODY
from broker.wire import Job, encode

MAX_COPIES_BYTES = 8 * MAX_BODY  # of all jobs that one request makes

router = Router(tags=["OpenAI-compatible"], auth=Key())


@router.get("/models")
async def models(request: AuthRequest) -> dict[str, Any]:
    """Every model there is."""
    names, lengths = await app().catalog.models(), app().catalog.context_lengths()
    return {"object": "list", "data": [shapes.model(name, lengths.get(name)) for name in names]}


@router.get("/models/{path:name}")
async def model(request: AuthRequest, name: str) -> dict[str, Any]:
    """One model."""
    known = await app().catalog.models()
    if name not in known:
        raise no_such_model(name, known)
    return shapes.model(name, app().catalog.context_lengths().get(name))


@router.post("/chat/completions", openapi_extra=JOB_OPERATION)
async def chat_completions(request: AuthRequest, asked: ChatCompletion) -> HttpResponseBase:
    """Continues a dialogue. With `stream`, the answer comes as server-sent events."""
    messages = [message.to_wire() for message in asked.messages]
    job = build.chat_job(
        asked.model,
        messages,
        asked.sampling(),
        request.auth,
        seconds_left=seconds_wanted(request),
        job_class=asked.job_class,
    )
    return await _answer(request, job, asked, shapes.ChatShape, "messages")


@router.post("/completions", openapi_extra=JOB_OPERATION)
async def completions(request: AuthRequest, asked: Completion) -> HttpResponseBase:
    """Continues a text. With `stream`, the answer comes as server-sent events."""
    job = build.prompt_job(
        asked.model,
        asked.prompt,
        asked.sampling(),
        request.auth,
        seconds_left=seconds_wanted(request),
        job_class=asked.job_class,
    )
    return await _answer(request, job, asked, shapes.TextShape, "prompt")


async def _answer(
    request: AuthRequest, job: Job, asked: Generation, form: type[shapes.Shape], prompt_field: str
) -> HttpResponseBase:
    count = asked.n or 1
    _check_copies(job, count)
    begun = await completion.begin_choices(request, job, count)
    shape = form(begun.request_id, job.model, begun.created, asked.wants_usage, asked.tier)
    if asked.stream:
        return EventStream(
            chunks(begun, shape, prompt_field), begun.source, headers=begun.headers()
        )
    answers = await completion.complete_choices(begun, prompt_field)
    return HttpResponse(
        msgspec.json.encode(shape.whole(answers)),
        content_type="application/json",
        headers=begun.headers(answers[0].waited),
    )


def _check_copies(job: Job, count: int) -> None:
    """Each choice is a job that carries the prompt. Raises ApiError 400 if all together are too large."""
    size = len(encode(job)) if count > 1 else 0
    if size * count > MAX_COPIES_BYTES:
        most = MAX_COPIES_BYTES // size
        raise ApiError(400, f"n: at most {most} choices with a prompt of this length", field="n")
