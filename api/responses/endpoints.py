"""/v1/responses: OpenAI's Responses API."""

from functools import partial
from typing import Annotated, Any

import msgspec
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from ninja import Query, Router

from api.accounts.auth import AuthRequest, Key
from api.answers import following
from api.errors import ApiError
from api.http.documentation import JOB_OPERATION
from api.http.sse import EventStream
from api.requests.tokenize import count_tokens
from api.responses import create, store, stored
from api.responses.models import StoredResponse
from api.responses.progress import events
from api.responses.schemas import (
    DeletedResponse,
    InputItems,
    InputTokens,
    ItemsQuery,
    ResponseQuery,
    ResponseRequest,
)
from api.responses.shapes import PREFIX, name_of

router = Router(tags=["OpenAI-compatible"], auth=Key())


@router.post("/responses", openapi_extra=JOB_OPERATION)
async def respond(request: AuthRequest, body: ResponseRequest) -> HttpResponseBase:
    """Answers an input. With `stream`, as server-sent events; with `background`, later."""
    new = await create.prepare(request, body)
    if body.background:
        row = await create.begin_in_background(request, new)
        return _stream(row, -1) if body.stream else _whole(row)
    running = await create.begin(request, new)
    if not body.stream:
        response, waited = await create.complete(new, running)
        return _json(response, running.headers(waited))
    progress = new.progress(running)
    told = events(
        progress,
        running.frames,
        waiting=running.waiting,
        before_last=create.keeper(new, progress, running.request_id),
    )
    return EventStream(told, running.source, headers=running.headers())


@router.post("/responses/input_tokens", response=InputTokens, openapi_extra=JOB_OPERATION)
async def count(request: AuthRequest, body: ResponseRequest) -> dict[str, Any]:
    """How many tokens the input of such a response has, with its tools: a node counts them."""
    new = await create.prepare(request, body)
    tokens = await count_tokens(request, new.job)
    return {"object": "response.input_tokens", "input_tokens": tokens}


@router.get("/responses/{response_id}")
async def read(
    request: AuthRequest, response_id: str, query: Annotated[ResponseQuery, Query()]
) -> HttpResponseBase:
    """A stored response. With `stream`, its events, those behind `starting_after`."""
    row = await _find(request, response_id)
    if query.stream:
        return _stream(row, -1 if query.starting_after is None else query.starting_after)
    return _whole(row)


@router.post("/responses/{response_id}/cancel")
async def cancel(request: AuthRequest, response_id: str) -> HttpResponseBase:
    """Ends a response in the background, if it has not ended."""
    row = await _find(request, response_id)
    if not row.background:
        message = "only a response in the background can be cancelled; close the connection"
        raise ApiError(400, message, field="response_id", code="invalid_value")
    await following.stop(row)
    return _whole(await _find(request, response_id))


@router.delete("/responses/{response_id}", response=DeletedResponse)
async def delete(request: AuthRequest, response_id: str) -> dict[str, Any]:
    """Deletes a stored response; one that is being written ends."""
    row = await _find(request, response_id)
    await following.stop(row)
    await store.remove(row)
    return {"id": f"{PREFIX}{row.name}", "object": "response", "deleted": True}


@router.get("/responses/{response_id}/input_items", response=InputItems)
async def input_items(
    request: AuthRequest, response_id: str, query: Annotated[ItemsQuery, Query()]
) -> dict[str, Any]:
    """The items of the request itself, newest first unless `order` is asc."""
    found = list((await _find(request, response_id)).input)
    if query.order == "desc":
        found.reverse()
    ids = [item["id"] for item in found]
    if query.after is not None:
        if query.after not in ids:
            raise ApiError(400, "after: there is no such item", field="after", code="not_found")
        found = found[ids.index(query.after) + 1 :]
    page = found[: query.limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(found) > query.limit,
    }


async def _find(request: AuthRequest, response_id: str) -> StoredResponse:
    """Raises ApiError 404."""
    row = await store.find(request.auth, name_of(response_id))
    if row is None:
        message = (
            "there is no such response of yours; it was not stored, was deleted, or has expired"
        )
        raise ApiError(404, message, field="response_id", code="not_found")
    return row


def _stream(row: StoredResponse, after: int) -> EventStream:
    reader = following.follow(row)
    progress = stored.progress_of(row)
    at_end = partial(stored.use_stored_end, row, progress) if row.background else None
    told = events(progress, reader, after=after, before_last=at_end)
    return EventStream(told, reader, headers={"X-Request-Id": row.request_id})


def _whole(row: StoredResponse) -> HttpResponse:
    return _json(stored.response_of(row), {"X-Request-Id": row.request_id})


def _json(response: dict[str, Any], headers: dict[str, str]) -> HttpResponse:
    content = msgspec.json.encode(response)
    return HttpResponse(content, content_type="application/json", headers=headers)
