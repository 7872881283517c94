"""POST /arranca/: a text in, its answer out, with the caller's timestamp unchanged.

With `stream`, the answer comes as lines of JSON (frames.py).
"""

from typing import Annotated, Any

import msgspec
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from ninja import Router, Schema
from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from api.accounts.auth import AuthRequest, Member
from api.arranca import frames
from api.context import app
from api.http.documentation import JOB_OPERATION
from api.http.parsing import Body, Integer
from api.http.sse import EventStream
from api.requests.build import CONVERSATION, as_whole, chat_job
from api.requests.complete import complete, start
from api.requests.deadline import seconds_left
from broker.wire import ChatMessage

router = Router(tags=["arranca"], auth=Member())


def _check_timestamp(timestamp: Any) -> Any:
    if isinstance(timestamp, bool) or not isinstance(timestamp, str | int | float):
        raise PydanticCustomError("timestamp", "must be a text or a number")
    return timestamp


Timestamp = Annotated[
    Any, AfterValidator(_check_timestamp), WithJsonSchema({"type": ["string", "number"]})
]


class Question(Body):
    """A text, and when it was sent."""

    text: str = Field(min_length=1)
    timestamp: Timestamp
    max_tokens: Annotated[Integer, Field(ge=1, le=10_000_000)] | None = None
    model: str | None = Field(default=None, min_length=1, description="the default model if null")
    stream: bool = Field(default=False, description="the answer in lines of JSON, as it is made")


class Reply(Schema):
    """The answer, with the question's timestamp."""

    text: str
    timestamp: Any
    request_id: str


@router.post("/", response=Reply, openapi_extra=JOB_OPERATION)
async def arranca(
    request: AuthRequest, question: Question, response: HttpResponse
) -> Reply | HttpResponseBase:
    """Answers one question, with the default model unless it names one."""
    job = chat_job(
        question.model or await app().catalog.default_or_503(),
        [ChatMessage(role="user", content=question.text)],
        msgspec.structs.replace(CONVERSATION, max_tokens=question.max_tokens),
        request.auth,
        seconds_left=seconds_left(request),
        truncate=True,
    )
    running = await start(request, as_whole(job, question.stream))
    if question.stream:
        lines = frames.lines(running, question.timestamp)
        headers, content_type = running.headers(), frames.CONTENT_TYPE
        return EventStream(lines, running.source, headers=headers, content_type=content_type)
    answer = await complete(running, "text")
    for name, value in running.headers(answer.waited).items():
        response.headers[name] = value
    return Reply(text=answer.text, timestamp=question.timestamp, request_id=running.request_id)
