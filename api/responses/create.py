"""POST /v1/responses: the job of a response, and who writes it."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from api.accounts.auth import AuthRequest
from api.answers import following
from api.answers.record import Status
from api.context import app
from api.errors import ApiError
from api.idempotency.attach import HEADER, fingerprint_of, key_of
from api.requests import origin
from api.requests.build import as_whole, chat_job
from api.requests.complete import RunningAnswer, start
from api.requests.deadline import seconds_left
from api.requests.errors import job_failure
from api.responses import items, store, stored
from api.responses.models import StoredResponse
from api.responses.progress import Progress
from api.responses.schemas import ResponseRequest
from api.responses.shapes import Shape, name_of
from api.storage.text import storable, storable_document
from broker.wire import ChatMessage, Failed, Job, Waiting


class NewResponse:
    """A response that is asked for. `input`: its own items, with ids."""

    def __init__(self, request: AuthRequest, body: ResponseRequest, job: Job) -> None:
        self.job = job
        self.input: list[dict[str, Any]] = []
        self.is_stored = body.is_stored
        self._request = request
        self._previous = name_of(body.previous_response_id or "")
        self._parameters = {"created_at": int(job.created), **body.parameters()}

    def progress(self, running: RunningAnswer) -> Progress:
        """What the answer's frames become. One with an Idempotency-Key has its first job's id."""
        parameters = {**self._parameters, "created_at": running.created}
        return Progress(self.job, Shape(running.request_id, parameters))

    def row(self, name: str) -> StoredResponse:
        """To be stored under that name."""
        sent = storable_document(items.with_ids(self.input, name))
        return StoredResponse(
            user=self._request.auth,
            name=name,
            request_id=name,
            previous=self._previous,
            parameters=storable_document(self._parameters),
            input=sent,
            input_size=items.size(sent),
        )

    async def keep(self, progress: Progress, name: str) -> None:
        """Stores a response whose answer has ended, unless it failed or is stored already."""
        end = progress.end
        if end is None or not self.is_stored:
            return
        row = self.row(name)
        row.content = storable("".join(progress.texts))
        row.status = Status.STOPPED if end.reason == "cancelled" else Status.DONE
        row.finish_reason = end.reason
        row.prompt_tokens, row.completion_tokens = end.prompt_tokens, end.completion_tokens
        row.cached_tokens = end.cached_tokens
        if progress.start is not None:
            row.node = progress.start.node
        row.tool_format, row.reasoning_format = progress.formats
        row.parameters["completed_at"] = progress.completed_at
        if not await store.insert(row, app().response_inserts):
            # told again: a retry with its Idempotency-Key
            former = await store.find(self._request.auth, name)
            if former is not None:
                progress.completed_at = former.parameters.get("completed_at")


async def prepare(request: AuthRequest, body: ResponseRequest) -> NewResponse:
    """The response's job, with the dialogue that it continues. Raises ApiError 400."""
    own = await stored.resolved(request.auth, body.input)  # type: ignore[arg-type]
    former: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        former = await stored.history(request.auth, body.previous_response_id)
    turns = items.turns([*former, *own])
    if body.instructions:
        turns.insert(0, ChatMessage(role="system", content=body.instructions))
    if not turns:
        message = "input: there is nothing to answer; give a text or an item"
        raise ApiError(400, message, field="input", code="invalid_value")
    job = chat_job(
        body.model,
        turns,
        body.sampling(),
        request.auth,
        seconds_left=seconds_left(request),
        job_class=body.job_class,
        truncate=body.truncation == "auto",
    )
    effort = (body.reasoning and body.reasoning.effort) or ""
    job = msgspec.structs.replace(body.tool_use().apply(job), reasoning_effort=effort)
    new = NewResponse(request, body, as_whole(job, body.stream or body.background))
    new.input = own
    return new


async def begin(request: AuthRequest, new: NewResponse) -> RunningAnswer:
    """Starts a response that its client waits for. Raises ApiError."""
    return await start(request, new.job)


async def complete(new: NewResponse, running: RunningAnswer) -> tuple[dict[str, Any], str | None]:
    """The whole response, and why it had to wait. Raises ApiError if the job fails."""
    progress, waited = new.progress(running), running.waiting
    async with aclosing(running.source):
        async for frame in running.frames:
            match frame:
                case None:
                    continue
                case Waiting():
                    waited = frame.reason
                case Failed():
                    raise job_failure(frame, "input")
                case _:
                    progress.take(frame)
    if progress.response is None:
        raise AssertionError("a stream ended without an end frame")
    await new.keep(progress, running.request_id)
    return progress.response, waited


def keeper(new: NewResponse, progress: Progress, name: str) -> Callable[[], Awaitable[None]]:
    """Stores a streamed response when its answer has ended."""
    return partial(new.keep, progress, name)


async def begin_in_background(request: AuthRequest, new: NewResponse) -> StoredResponse:
    """Stores the response and begins it, or finds the one that the Idempotency-Key names.

    It goes on whatever becomes of its client, and of this process. Raises ApiError.
    """
    key = key_of(request)
    fingerprint = fingerprint_of(request) if key is not None else ""
    if key is not None:
        known = await _of_key(request, key, fingerprint)
        if known is not None:
            return known
    [job] = origin.adopt([new.job])  # before it is stored
    row = new.row(job.request_id)
    row.background, row.key, row.fingerprint = True, key, fingerprint
    job = row.start(job)
    if await store.insert(row, app().response_inserts):
        await following.begin(row, job, undo=partial(store.remove, row))
        return row
    known = await _of_key(request, key or "", fingerprint)
    if known is None:
        message = "another request with this key was removed just now; try again"
        raise ApiError(503, message, field=HEADER, code="unavailable")
    return known


async def _of_key(request: AuthRequest, key: str, fingerprint: str) -> StoredResponse | None:
    """Raises ApiError 422 if the key was used for another request."""
    row = await store.of_key(request.auth, key)
    if row is not None and row.fingerprint != fingerprint:
        message = f"this {HEADER} was used for another request; take a new key for a new request"
        raise ApiError(422, message, field=HEADER, code="idempotency_key_reused")
    return row
