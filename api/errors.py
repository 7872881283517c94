"""The API's errors: one tree, and its JSON shapes by the family of the path.

OpenAI's below /v1/, Anthropic's below /v1/messages, Canopy's elsewhere.

The status says whose fault it is and whether a retry helps: 4xx is the client's and permanent,
except 408 and 429; 5xx is the service's; 429, 503 and 504 may succeed later.

    ApiError                    a refused or failed request
    |- BodyTooLarge             413
    |- NotLoggedIn              401
    |- UnknownSender            401
    `- ServiceUnavailable       503, retryable
       |- NotRunning            the application starts or stops
       `- TreeUnreadable        the broker's management API does not answer (tree/watch.py)

Others: BadEnvironment (environment.py) is the operator's, and ends the process; Disconnected
(server/body.py) and Rejected (server/protocol.py) never leave their rooms.
"""

import re
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import structlog
from django.conf import settings
from django.core.exceptions import DisallowedHost, RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import is_valid_path
from django.utils.html import format_html
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError

from api.http import pages
from api.http.alternatives import first_error
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

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

MAX_ECHOED_PATH = 200  # characters
_PROGRAMS = ("/api/", "/v1/", "/static/")  # whose addresses always answer programs
_NOT_FOUND = "<!doctype html><meta charset=utf-8><title>Canopy</title><h1>Nothing is at {}</h1>"
_VALIDATOR = re.compile(r"function-\w+\(.*\)")  # pydantic's name of one, inside a location
UNSUPPORTED = "unsupported_parameter"  # pydantic's type of such an error, and OpenAI's code for it

# pydantic's types of errors: our codes, and which of its values is the bound that was not kept
VALIDATION_CODES = {
    UNSUPPORTED: (UNSUPPORTED, ""),
    "blank": ("blank", ""),
    "missing": ("missing", ""),
    "string_too_long": ("too_many_characters", "max_length"),
    "string_too_short": ("too_few_characters", "min_length"),
    "less_than_equal": ("too_large", "le"),
    "greater_than_equal": ("too_small", "ge"),
}

_OBJECT_TYPES = {"dict_type", "model_type", "model_attributes_type"}
_LENGTHS = {"too_long": ("at most", "max_length"), "too_short": ("at least", "min_length")}


class ApiError(Exception):
    """A refused or failed request.

    `code`: the kind of error, by which pages translate it; below /v1/ OpenAI's where there is one.
    `params`: what a translated sentence says besides. `field`: the wrong field of the request.
    `request_id`: the job that failed. `headers`: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        params: Mapping[str, str | int] | None = None,
        field: str | None = None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.params = params or {}
        self.field = field
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


class NotLoggedIn(ApiError):
    """401: neither a session nor a key."""

    def __init__(self) -> None:
        message = "log in, or send an API key as a Bearer token"
        super().__init__(401, message, code="not_logged_in")


class BodyTooLarge(ApiError):
    """413: the body has more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        message = f"the request's body is larger than {limit} bytes"
        super().__init__(413, message, code="request_too_large", params={"limit": limit})


class UnknownSender(ApiError):
    """401: a body above `limit` bytes without a valid key or session."""

    def __init__(self, limit: int) -> None:
        message = (
            f"a body above {limit} bytes needs a valid API key (Authorization: Bearer KEY), "
            "or a login"
        )
        super().__init__(401, message, code="invalid_api_key")


def body(path: str, error: ApiError) -> dict[str, Any]:
    """The error as the JSON that clients of `path` expect."""
    return _SHAPES[addresses.family(path)](error)


def _canopy_shape(error: ApiError) -> dict[str, Any]:
    shown = {
        "message": error.message,
        "field": error.field,
        "code": error.code,
        "params": error.params,
    }
    return {"error": shown}


def _openai_shape(error: ApiError) -> dict[str, Any]:
    default_type = "server_error" if error.status >= 500 else "invalid_request_error"
    fields = {
        "message": error.message,
        "type": _TYPES.get(error.status, default_type),
        "param": error.field,
        "code": error.code,
    }
    return {"error": fields}


def _anthropic_shape(error: ApiError) -> dict[str, Any]:
    """With the job's id; a request that made no job gets a new one."""
    default_type = "api_error" if error.status >= 500 else "invalid_request_error"
    fields = {
        "type": _ANTHROPIC_TYPES.get(error.status, default_type),
        "message": error.message,
    }
    return {"type": "error", "error": fields, "request_id": error.request_id or uuid.uuid4().hex}


_SHAPES: dict[addresses.Family, Callable[[ApiError], dict[str, Any]]] = {
    "canopy": _canopy_shape,
    "openai": _openai_shape,
    "anthropic": _anthropic_shape,
}


def response(path: str, error: ApiError) -> HttpResponse:
    """The error as an HTTP response."""
    shown = body(path, error)
    content = msgspec.json.encode(shown)
    response = HttpResponse(content, status=error.status, content_type="application/json")
    if "request_id" in shown:
        response.headers["Request-Id"] = shown["request_id"]  # where Anthropic's clients read it
    if error.request_id:
        response.headers["X-Request-Id"] = error.request_id
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status == 503:
        response.headers["Retry-After"] = "2"
    for name, value in error.headers.items():
        response.headers[name] = value
    return response


def last_response(path: str, error: ApiError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an error that closes the connection, for code outside Django."""
    last = response(path, error)
    headers = [(name.encode(), value.encode()) for name, value in last.headers.items()]
    headers.append((b"Content-Length", str(len(last.content)).encode()))
    headers.append((b"Connection", b"close"))
    return headers, last.content


def field_name(location: Iterable[str | int]) -> str:
    """A location inside a JSON document as people write it: `messages[0].content`."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif name:
            name += f".{part}"
        else:
            name = part
    return name


def register(api: NinjaAPI) -> None:
    """Gives every error of the typed endpoints its shape."""

    @api.exception_handler(ApiError)
    def refused(request: HttpRequest, error: ApiError) -> HttpResponse:
        return response(request.path_info, error)

    @api.exception_handler(ValidationError)
    def invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
        return response(request.path_info, _from_validation(error))

    @api.exception_handler(AuthenticationError)
    def unauthenticated(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
        return response(request.path_info, NotLoggedIn())

    @api.exception_handler(HttpError)
    def wrapped(request: HttpRequest, error: HttpError) -> HttpResponse:
        cause = error.__cause__  # ninja wraps what the body's parser raised
        if isinstance(cause, ApiError):
            return response(request.path_info, cause)
        return response(
            request.path_info, ApiError(error.status_code, str(error), code="bad_request")
        )

    @api.exception_handler(Http404)
    def missing(request: HttpRequest, error: Http404) -> HttpResponse:
        return response(request.path_info, ApiError(404, "no such thing here", code="not_found"))

    @api.exception_handler(RequestDataTooBig)
    def too_big(request: HttpRequest, error: RequestDataTooBig) -> HttpResponse:
        too_large = ApiError(413, "the request's body is too large", code="request_too_large")
        return response(request.path_info, too_large)

    @api.exception_handler(Exception)
    def broken(request: HttpRequest, error: Exception) -> HttpResponse:
        return response(request.path_info, unexpected(request.path_info, error))


def unexpected(path: str, error: BaseException | None) -> ApiError:
    """Logs an unhandled exception; returns 503 for an outage of the storage, else 500."""
    if isinstance(error, ApiError):
        return error
    outage = None
    if error is not None:
        outage = outages.describe(error)
    if outage is not None:
        log.error("the storage does not work", path=path, reason=outage, error=str(error))
        return ApiError(503, outage, code="unavailable")
    log.error("a view failed", path=path, exc_info=error)
    return ApiError(500, "something went wrong here; the log has the details", code="internal")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404: a page for people, JSON for programs."""
    path = request.path_info[:MAX_ECHOED_PATH]
    if pages.is_visit(request) and not path.startswith(_PROGRAMS):
        return pages.notice(404, {"Vary": "Accept"}, format_html(_NOT_FOUND, path))
    if addresses.family(path) != "canopy":
        hint = f"; {addresses.suggestion(path)}"
    elif is_valid_path(f"{path}/"):
        hint = f"; use {path}/, the slash at the end counts"
    elif path.endswith("/") and is_valid_path(path.rstrip("/")):
        hint = f"; use {path.rstrip('/')}, without the slash at the end"
    else:
        hint = ""
    missing = ApiError(404, f"nothing is at {path}{hint}", code="not_found")
    return response(request.path_info, missing)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400."""
    message = f"{type(exception).__name__}: this request cannot be served"
    if isinstance(exception, DisallowedHost):
        message = "this host name is not served here; CANOPY_URL or CANOPY_HOSTS adds one"
    return response(request.path_info, ApiError(400, message, code="bad_request"))


def not_allowed(request: HttpRequest, former: HttpResponse) -> HttpResponse:
    """Django's 405 in the API's shape."""
    allowed = former.headers.get("Allow", "")
    message = f"{request.method} is not possible here; use {allowed}"
    refused = ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
    return response(request.path_info, refused)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500."""
    return response(request.path_info, unexpected(request.path_info, sys.exc_info()[1]))


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Django's CSRF_FAILURE_VIEW."""
    return response(request.path_info, csrf_refusal(reason))


def csrf_refusal(reason: str) -> ApiError:
    """403, with what helps. `reason`: Django's."""
    cookie = settings.CSRF_COOKIE_NAME
    if reason.startswith(("Origin checking", "Referer checking")):
        message = f"CSRF check failed: {reason} CANOPY_URL must be the address that browsers show"
        return ApiError(403, message, code="unknown_origin")
    message = f"CSRF check failed: send the {cookie} cookie's value in the header X-CSRFToken"
    return ApiError(403, message, code="csrf_failed")


def _from_validation(error: ValidationError) -> ApiError:
    """The first error, with its location."""
    first = first_error(error.errors)
    location = [part for part in first["loc"] if not _VALIDATOR.fullmatch(str(part))]
    # ("body", "<the view's parameter>", ...) or ("path" | "query", name)
    location = location[2:] if location[0] == "body" else location[1:]
    location += first.get("ctx", {}).get("at", ())  # added by validators of a whole object
    field = field_name(location) or "body"
    kind, message = first["type"], first["msg"]
    context = first.get("ctx", {})
    if kind in _LENGTHS and context.get("field_type") == "Value":  # a text, behind a validator
        kind = f"string_{kind}"
        least_or_most, bound = _LENGTHS[first["type"]]
        length = context["actual_length"]
        message = f"must have {least_or_most} {context[bound]} characters, not {length}"
    if kind in _OBJECT_TYPES:  # else the message names a class of ours
        message = "must be an object"
    code, bound = VALIDATION_CODES.get(kind, ("invalid_value", ""))
    params = {"field": field}
    if bound:
        params["bound"] = context[bound]
    return ApiError(400, f"{field}: {message}", field=field, code=code, params=params)
