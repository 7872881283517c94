"""Calls an endpoint of this process as a client would, without a connection."""

import asyncio
from dataclasses import dataclass

from django.http import HttpResponse
from django.urls import Resolver404, resolve

from api import errors
from api.accounts.models import User
from api.errors import ApiError
from api.http.internal import InternalRequest
from api.requests import origin
from api.requests.origin import Origin


@dataclass(frozen=True, slots=True)
class Reply:
    """The endpoint's whole response. `request_id`: the job's, if there was one."""

    status: int
    body: bytes
    request_id: str | None
    retry_after: float | None  # seconds

    @property
    def is_refusal(self) -> bool:
        """True if no job was taken, for a reason that may be gone later."""
        return self.status in {429, 503} and self.request_id is None


async def call(
    user: User,
    path: str,
    body: bytes,
    source: Origin,
    *,
    idempotency_key: str | None = None,
    seconds_left: float | None = None,
) -> Reply:
    """The response to a JSON body that asks for no stream. Cancelling this cancels its jobs."""
    headers: dict[str, str] = {}
    if idempotency_key is not None:
        headers["HTTP_IDEMPOTENCY_KEY"] = idempotency_key
    if seconds_left is not None:
        headers["HTTP_X_CANOPY_DEADLINE"] = f"{seconds_left:.3f}"
    request = InternalRequest(user, path, body, headers)
    # A task, so that what belongs to this call is not seen by the caller's next one.
    return await asyncio.create_task(_respond(request, source), name=f"call of {path}")


async def _respond(request: InternalRequest, source: Origin) -> Reply:
    origin.current.set(source)
    try:
        found = resolve(request.path_info)
    except Resolver404:
        missing = ApiError(404, f"nothing is at {request.path_info}", code="not_found")
        return Reply(404, errors.response(request.path_info, missing).content, None, None)
    response = await found.func(request, *found.args, **found.kwargs)
    if not isinstance(response, HttpResponse):
        response.close()
        raise TypeError(f"{request.path_info} answered an internal request with a stream")
    return Reply(
        response.status_code,
        response.content,
        response.headers.get("X-Request-Id"),
        _seconds(response.headers.get("Retry-After")),
    )


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None
