"""Request bodies: JSON as clients send it, within bounds, checked by strict models."""

import codecs
import json
import zlib
from typing import Annotated, Any, NoReturn

import msgspec
from django.conf import settings
from django.http import HttpRequest
from django.urls.converters import IntConverter
from ninja.parser import Parser
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from api.errors import ApiError

MAX_LEVELS = 64  # of objects and lists inside each other; everything that walks a document may rely on it
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1  # what any JSON library and msgspec's encoder can carry
MAX_ROW_ID = 2**63 - 1  # a database's largest key
MAX_ECHOED = 100  # characters of a client's text that an error message repeats


class StrictParser(Parser):
    """Reads JSON bodies; anything else is refused with the reason."""

    def parse_body(self, request: HttpRequest) -> Any:
        """Raises ApiError as `document` does."""
        return document(request)


def document(request: HttpRequest) -> Any:
    """The request's body as plain values, at most MAX_LEVELS deep, with texts that UTF-8 can carry.

    Raises ApiError 400 for what is not such JSON, 413 for what inflates to too much, and 415 for an encoding other
    than gzip.
    """
    body = _inflated(request).removeprefix(codecs.BOM_UTF8)
    try:
        found = _decode(body)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"body: not UTF-8 (byte {error.start})", field="body") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: not JSON ({error})", field="body") from error
    _check_bounds(found)
    return found


def _decode(body: bytes) -> Any:
    """Raises ValueError (of which UnicodeDecodeError is one) or RecursionError."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(_without_lone_surrogates(body))


def _without_lone_surrogates(body: bytes) -> bytes:
    """The same document with U+FFFD for each half of a surrogate pair without its other half.

    JavaScript and Python make such halves when a text is cut inside an emoji, and send them as escapes or as bytes.
    """
    loaded = json.loads(body.decode("utf-8", "surrogatepass"), parse_constant=_refuse_constant)
    text = json.dumps(loaded, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _check_bounds(found: Any) -> None:
    """Raises ApiError 400, naming the field, for a document that is too deep or has a number that is too long."""
    fields = found if isinstance(found, dict) else {"body": found}
    for name, value in fields.items():
        _check_value(value, name[:MAX_ECHOED], MAX_LEVELS - 1)


def _check_value(value: Any, field: str, levels: int) -> None:
    if isinstance(value, dict):
        value = value.values()
    elif isinstance(value, int):
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise ApiError(400, f"{field}: an integer of more than 64 bits", field=field)
        return
    elif not isinstance(value, list):
        return
    if levels == 0:
        raise ApiError(400, f"{field}: the body has more than {MAX_LEVELS} levels", field=field)
    for each in value:
        _check_value(each, field, levels - 1)


def _inflated(request: HttpRequest) -> bytes:
    """The body without its content encoding. Raises ApiError 400, 413 or 415."""
    encoding = request.META.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding in {"", "identity"}:
        return request.body
    if encoding not in {"gzip", "x-gzip"}:
        message = f"Content-Encoding: {encoding[:50]!r} is not understood; send the body as it is, or as gzip"
        raise ApiError(415, message, field="Content-Encoding", headers={"Accept-Encoding": "gzip, identity"})
    inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        body = inflate.decompress(request.body, settings.MAX_BODY + 1)
    except zlib.error as error:
        raise ApiError(400, f"body: not gzip ({error})", field="body") from error
    if len(body) > settings.MAX_BODY:
        message = f"the request's body is larger than {settings.MAX_BODY} bytes when inflated"
        raise ApiError(413, message, code="request_too_large")
    if not inflate.eof:
        raise ApiError(400, "body: not gzip (it ends too early)", field="body")
    return body


class Body(BaseModel):
    """Base of request bodies: types are not converted, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Integer = Annotated[int, BeforeValidator(_whole)]  # JavaScript and Lua have one kind of number: 8.0 is 8


def storable(text: str) -> str:
    """The text with U+FFFD for U+0000, which PostgreSQL refuses; as long as before."""
    return text.replace("\x00", "\ufffd")


StorableText = Annotated[str, AfterValidator(storable)]


class RowIdConverter(IntConverter):
    """Keys of rows in addresses (`{row:…}`): a larger number is no row's, so the address is a 404."""

    def to_python(self, value: str) -> int:
        """Raises ValueError, which makes Django look for another address."""
        number = int(value)
        if number > MAX_ROW_ID:
            raise ValueError(f"{value} is no row's key")
        return number
