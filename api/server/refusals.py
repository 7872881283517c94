"""The HTTP server's own error responses: to malformed, oversized and slow requests."""

from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True)
class Refusal:
    """A status, and the reason as one sentence."""

    status: HTTPStatus
    message: str


MALFORMED = Refusal(HTTPStatus.BAD_REQUEST, "this is not a well-formed HTTP/1.1 request")
NO_HOST = Refusal(HTTPStatus.BAD_REQUEST, "a request needs exactly one Host header")
BAD_CODING = Refusal(
    HTTPStatus.NOT_IMPLEMENTED, "the only Transfer-Encoding is chunked, and not with HTTP/1.0"
)
BAD_VERSION = Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this server speaks HTTP/1.1 and 1.0")
NO_TUNNEL = Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "CONNECT is not possible here")
URL_TOO_LONG = Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, "the request's address is too long")
HEAD_TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request has too many or too long headers"
)
BODY_TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too much is sent before the answer to an earlier request"
)
TOO_MANY_AT_ONCE = Refusal(
    HTTPStatus.TOO_MANY_REQUESTS, "too many requests wait for their turn on this connection"
)
HEAD_TOO_SLOW = Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request's headers took too long")
BODY_TOO_SLOW = Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request's body took too long")
TOO_MANY_CONNECTIONS = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "too many connections are open here or from your address; close some",
)

Headers = list[tuple[bytes, bytes]]


def framing_problem(version: str, headers: Headers) -> Refusal | None:
    """What makes the framing ambiguous, although the parser accepts it.

    `headers`: with names in lower case.
    """
    if version not in ("1.0", "1.1"):
        return BAD_VERSION
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return NO_HOST
    if b"transfer-encoding" in names:
        codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
        if codings != [b"chunked"] or version == "1.0":
            return BAD_CODING
    return None


def without_upgrade(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """The same request head without its Upgrade."""
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    for name, value in headers:
        if name in (b"upgrade", b"http2-settings"):
            continue
        if name != b"connection":
            lines.append(b"%b: %b" % (name, value))
            continue
        options = _without_token(value, b"upgrade")
        if options:
            lines.append(b"%b: %b" % (name, options))
    return b"\r\n".join([*lines, b"", b""])


def _without_token(value: bytes, token: bytes) -> bytes:
    tokens = [part.strip() for part in value.split(b",")]
    return b", ".join(part for part in tokens if part.lower() != token)


def as_bytes(refusal: Refusal, headers: Headers, content: bytes) -> bytes:
    """The whole response."""
    lines = [b"HTTP/1.1 %d %b" % (refusal.status, refusal.status.phrase.encode())]
    lines += [b"%b: %b" % field for field in headers]
    return b"\r\n".join([*lines, b"", content])
