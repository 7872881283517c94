"""Refusals: one exception, and its two shapes (OpenAI's below /v1/, Canopy's elsewhere)."""

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import structlog
from django.core.exceptions import DisallowedHost, RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import is_valid_path
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError

from api.openai import addresses
from api.storage import outages

log = structlog.get_logger("canopy.api")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


MAX_ECHOED_PATH = 200  # characters
UNSUPPORTED = "unsupported_parameter"  # pydantic's type of such an error, and OpenAI's code for it


class ApiError(Exception):
    """A request that is refused.

    `field`: what in the request is wrong; `code`: OpenAI's machine-readable name; `request_id`: the job that failed;
    `headers`: further ones of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.code = code
        self.request_id = request_id
        self.headers = headers or {}


class ServiceUnavailable(ApiError):
    """503: something of ours is away; the same request may succeed later."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, code="unavailable")


class NotRunning(ServiceUnavailable):
    """The application is starting or stopping."""

    def __init__(self) -> None:
        super().__init__("the service is stopping; send the request again")


class BodyTooLarge(ApiError):
    """413: the body has more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        message = f"the request's body is larger than {limit} bytes"
        super().__init__(413, message, code="request_too_large")


class UnknownSender(ApiError):
    """401: a body above `limit` bytes without a valid key or session."""

    def __init__(self, limit: int) -> None:
        message = (
            f"a body above {limit} bytes needs a valid API key (Authorization: Bearer KEY), "
            "or a login"
        )
        super().__init__(401, message, code="invalid_api_key")


def body(path: str, error: ApiError) -> dict[str, Any]:
    """The refusal as the JSON that clients of `path` expect."""
    if not addresses.expects_openai_errors(path):
        return {"error": {"message": error.message, "field": error.field}}
    kind = _TYPES.get(
        error.status, "server_error" if error.status >= 500 else "invalid_request_error"
    )
    return {
        "error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}
    }


def response(path: str, error: ApiError) -> HttpResponse:
    """The refusal as an HTTP response."""
    answer = HttpResponse(
        msgspec.json.encode(body(path, error)), status=error.status, content_type="application/json"
    )
    if error.request_id:
        answer.headers["X-Request-Id"] = error.request_id
    if error.status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if error.status == 503:
        answer.headers["Retry-After"] = "2"
    for name, value in error.headers.items():
        answer.headers[name] = value
    return answer


def last_response(path: str, error: ApiError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of a refusal after which the connection closes, for code outside Django."""
    answer = response(path, error)
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    headers.append((b"Content-Length", str(len(answer.content)).encode()))
    headers.append((b"Connection", b"close"))
    return headers, answer.content


def field_name(location: Iterable[str | int]) -> str:
    """A place inside a JSON document as people write it: `messages[0].content`."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def register(api: NinjaAPI) -> None:
    """Gives every refusal of the typed endpoints its shape."""

    @api.exception_handler(ApiError)
    def refused(request: HttpRequest, error: ApiError) -> HttpResponse:
        return response(request.path, error)

    @api.exception_handler(ValidationError)
    def invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
        return response(request.path, _from_validation(error))

    @api.exception_handler(AuthenticationError)
    def nobody(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
        return response(request.path, ApiError(401, "log in, or send an API key as a Bearer token"))

    @api.exception_handler(HttpError)
    def wrapped(request: HttpRequest, error: HttpError) -> HttpResponse:
        # ninja wraps whatever the body's parser raised
        cause = error.__cause__
        return response(
            request.path,
            cause if isinstance(cause, ApiError) else ApiError(error.status_code, str(error)),
        )

    @api.exception_handler(Http404)
    def missing(request: HttpRequest, error: Http404) -> HttpResponse:
        return response(request.path, ApiError(404, "no such thing here"))

    @api.exception_handler(RequestDataTooBig)
    def too_big(request: HttpRequest, error: RequestDataTooBig) -> HttpResponse:
        return response(
            request.path, ApiError(413, "the request's body is too large", code="request_too_large")
        )

    @api.exception_handler(Exception)
    def broken(request: HttpRequest, error: Exception) -> HttpResponse:
        return response(request.path, unexpected(request.path, error))


def unexpected(path: str, error: BaseException | None) -> ApiError:
    """Logs what no view has foreseen; returns what its client hears: 503 for an outage of the storage, else 500."""
    if isinstance(error, ApiError):
        return error
    outage = outages.describe(error) if error is not None else None
    if outage is not None:
        log.error("the storage does not work", path=path, reason=outage, error=str(error))
        return ApiError(503, outage, code="unavailable")
    log.error("a view failed", path=path, exc_info=error)
    return ApiError(500, "something went wrong here; the log has the details")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404."""
    path = request.path[:MAX_ECHOED_PATH]
    if addresses.expects_openai_errors(path):
        hint = f"; {addresses.suggestion(path)}"
    elif is_valid_path(f"{path}/"):
        hint = f"; use {path}/, the slash at the end counts"
    elif path.endswith("/") and is_valid_path(path.rstrip("/")):
        hint = f"; use {path.rstrip('/')}, without the slash at the end"
    else:
        hint = ""
    return response(request.path, ApiError(404, f"nothing is at {path}{hint}"))


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400."""
    if isinstance(exception, DisallowedHost):
        return response(
            request.path, ApiError(400, "this host name is not served here; CANOPY_HOSTS adds one")
        )
    return response(
        request.path, ApiError(400, f"{type(exception).__name__}: this request cannot be served")
    )


def not_allowed(request: HttpRequest, former: HttpResponse) -> HttpResponse:
    """405 in the right shape."""
    allowed = former.headers.get("Allow", "")
    answer = response(
        request.path, ApiError(405, f"{request.method} is not possible here; use {allowed}")
    )
    answer.headers["Allow"] = allowed
    return answer


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500."""
    return response(request.path, unexpected(request.path, sys.exc_info()[1]))


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Django's CSRF_FAILURE_VIEW."""
    return response(
        request.path,
        ApiError(403, f"CSRF check failed: {reason} Send the csrftoken cookie as X-CSRFToken."),
    )


def _from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong, with the place where it is."""
    first = error.errors[0]
    location = [part for part in first["loc"] if not re.fullmatch(r"function-\w+\(.*\)", str(part))]
    # ("body", "<the view's parameter>", ...) or ("path" | "query", name)
    location = location[2:] if location[0] == "body" else location[1:]
    location += first.get("ctx", {}).get("at", ())  # said by a check of a whole object
    code = UNSUPPORTED if first["type"] == UNSUPPORTED else None
    field = field_name(location) or "body"
    return ApiError(400, f"{field}: {first['msg']}", field=field, code=code)
