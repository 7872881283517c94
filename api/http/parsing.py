"""Request bodies: JSON within bounds, for strict pydantic models."""

import codecs
import re
import zlib
from typing import Annotated, Any

import msgspec
from django.conf import settings
from django.http import HttpRequest
from django.urls.converters import IntConverter
from ninja.parser import Parser
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from api import model_aliases
from api.errors import ApiError
from api.storage.text import storable

MAX_LEVELS = 64  # of nesting; code that walks a document may rely on it
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1  # what other JSON libraries can carry
MAX_ROW_ID = 2**63 - 1  # a database's largest key
MAX_ECHOED = 100  # characters of a client's text that an error message repeats
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_SURROGATES = re.compile(_HIGH + _LOW + rb"|" + _HIGH + rb"|" + _LOW)
_ESCAPE_BYTES = 6  # of one \uXXXX


class StrictParser(Parser):
    """ninja's parser of request bodies."""

    def parse_body(self, request: HttpRequest) -> Any:
        """Raises ApiError as `document` does."""
        return document(request)


def document(request: HttpRequest) -> Any:
    """The request's body as plain values, at most MAX_LEVELS deep, with valid Unicode texts.

    Raises ApiError 400 for anything else, 413 if it is too large when inflated, and 415 for a
    content encoding other than gzip.
    """
    body = _inflated(request).removeprefix(codecs.BOM_UTF8)
    try:
        value = _decode(body)
    except UnicodeDecodeError as error:
        raise ApiError(
            400, f"body: not UTF-8 (byte {error.start})", field="body", code="invalid_body"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ApiError(
            400, f"body: not JSON ({error})", field="body", code="invalid_body"
        ) from error
    _check_bounds(value)
    return value


def _decode(body: bytes) -> Any:
    """Raises ValueError (of which UnicodeDecodeError is one) or RecursionError."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(_without_lone_surrogates(body))


def _without_lone_surrogates(body: bytes) -> bytes:
    """The same document with U+FFFD for each half of a surrogate pair without its other half.

    JavaScript and Python produce them when a text is cut inside an emoji, as bytes or as escapes.
    """
    text = body.decode("utf-8", "surrogatepass")
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _SURROGATES.sub(_without_lone_escape, text.encode())


def _without_lone_escape(match: re.Match[bytes]) -> bytes:
    """A pair unchanged, U+FFFD for a half.

    After an odd number of backslashes, the first six bytes are plain text.
    """
    escape = match[0]
    is_pair = len(escape) > _ESCAPE_BYTES
    before = match.start()
    while before > 0 and match.string[before - 1] == ord("\\"):
        before -= 1
    first_is_text = (match.start() - before) % 2 == 1
    if first_is_text:
        return escape[:_ESCAPE_BYTES] + (rb"\ufffd" if is_pair else b"")
    return escape if is_pair else rb"\ufffd"


def _check_bounds(document: Any) -> None:
    """Raises ApiError 400, naming the field, for too many levels or too large an integer."""
    fields = document if isinstance(document, dict) else {"body": document}
    for name, value in fields.items():
        reason = _out_of_bounds(value)
        if reason is not None:
            field = name[:MAX_ECHOED]
            raise ApiError(400, f"{field}: {reason}", field=field, code="invalid_value")


def _out_of_bounds(field: Any) -> str | None:
    """What exceeds the bounds, if anything does.

    Iterates by level: with a call for each value, a megabyte of empty lists took seconds.
    """
    level = [field]
    for _ in range(MAX_LEVELS - 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, str):
                continue
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            elif isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
                return "an integer of more than 64 bits"
        if not inner:
            return None
        level = inner
    return f"the body has more than {MAX_LEVELS} levels"


def _inflated(request: HttpRequest) -> bytes:
    """The body without its content encoding. Raises ApiError 400, 413 or 415."""
    encoding = request.META.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding in {"", "identity"}:
        return request.body
    if encoding not in {"gzip", "x-gzip"}:
        message = (
            f"Content-Encoding: {encoding[:50]!r} is not understood; send the body as it is, "
            "or as gzip"
        )
        headers = {"Accept-Encoding": "gzip, identity"}
        raise ApiError(
            415, message, field="Content-Encoding", code="unsupported_encoding", headers=headers
        )
    inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        body = inflate.decompress(request.body, settings.MAX_BODY + 1)
    except zlib.error as error:
        raise ApiError(
            400, f"body: not gzip ({error})", field="body", code="invalid_body"
        ) from error
    if len(body) > settings.MAX_BODY:
        message = f"the request's body is larger than {settings.MAX_BODY} bytes when inflated"
        raise ApiError(413, message, code="request_too_large")
    if not inflate.eof or inflate.unused_data:
        raise ApiError(400, "body: not one whole gzip member", field="body", code="invalid_body")
    return body


class Body(BaseModel):
    """Base of request bodies: types are not converted, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# 8.0 is 8: JavaScript and Lua have one type of number.
Integer = Annotated[int, BeforeValidator(_whole)]


StorableText = Annotated[str, AfterValidator(storable)]


def served_model(name: str) -> str:
    """The model that a request's name for it stands for; see model_aliases.py."""
    env = settings.ENV
    return model_aliases.resolve(name, env.model_aliases, env.models)


# Any length: a name that no model has is a 404.
ModelName = Annotated[str, Field(min_length=1), AfterValidator(served_model)]


class RowIdConverter(IntConverter):
    """Keys of rows in paths (`{row:…}`). A number beyond MAX_ROW_ID is a 404."""

    def to_python(self, value: str) -> int:
        """Raises ValueError, which makes Django try the next pattern."""
        number = int(value)
        if number > MAX_ROW_ID:
            raise ValueError(f"{value} is no row's key")
        return number
