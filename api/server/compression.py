"""gzip for clients that accept it, except for streams and where a length could leak a secret.

BREACH: an attacker who makes a browser send requests whose text is reflected beside a secret learns
the secret from the lengths of the compressed responses. So responses that set a cookie, and the
pages of /admin/ (personal data beside words from the query), are not compressed. No other response
contains both, and cookies are SameSite=Lax, so requests from other sites carry none.
"""

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from api.server.response_headers import Fields, Headers

LEAST_BYTES = 1024  # below this the headers weigh more than what is saved
_LEVEL = 4
_THREAD_BYTES = 65_536  # more than this is compressed in a thread, off the event loop
_GZIP = 16 + zlib.MAX_WBITS
_TYPES = re.compile(
    rb"(text/(?!event-stream)|application/(json|javascript|manifest\+json|xml|wasm|yaml)|image/svg\+xml)"
)
VARY = (b"vary", b"Accept-Encoding")

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


def accepts_gzip(accept_encoding: bytes) -> bool:
    """Whether an Accept-Encoding header allows gzip."""
    accepted: dict[bytes, bool] = {}
    for part in accept_encoding.lower().split(b","):
        name, _, parameters = part.partition(b";")
        rejected = re.fullmatch(rb"\s*q\s*=\s*0(\.0*)?\s*", parameters)
        accepted[name.strip()] = rejected is None
    for coding in (b"gzip", b"x-gzip", b"*"):
        if coding in accepted:
            return accepted[coding]
    return False


def is_compressible(path: str, status: int, headers: Fields) -> bool:
    """Whether a response may be compressed at all."""
    if int(headers.get(b"content-length", LEAST_BYTES)) < LEAST_BYTES:
        return False
    if not _TYPES.match(headers.get(b"content-type", b"")):
        return False
    if status in (204, 206, 304) or path.startswith("/admin/"):
        return False
    return b"content-encoding" not in headers and b"set-cookie" not in headers


class Compressor:
    """Compresses one response. `start`: the message that begins it."""

    def __init__(self, start: Message, send: Send) -> None:
        self._start: Message | None = start  # sent with the first part of the body
        self._send = send
        self._deflate: Any = None

    async def body(self, message: Message) -> None:
        """Sends a part of the body."""
        content, more = message.get("body", b""), message.get("more_body", False)
        start, self._start = self._start, None
        if start is not None:
            if not more and len(content) < LEAST_BYTES:
                await self._send(start)
                await self._send(message)
                return
            self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        compressed = await self._compress(content, last=not more)
        if start is not None:
            start["headers"] = _encoded(start["headers"], None if more else len(compressed))
            await self._send(start)
        await self._send({"type": "http.response.body", "body": compressed, "more_body": more})

    async def _compress(self, content: bytes, last: bool) -> bytes:
        if len(content) > _THREAD_BYTES:
            return await asyncio.to_thread(self._deflated, content, last)
        return self._deflated(content, last)

    def _deflated(self, content: bytes, last: bool) -> bytes:
        compressed: bytes = self._deflate.compress(content)
        return compressed + self._deflate.flush() if last else compressed


def _encoded(headers: Headers, length: int | None) -> Headers:
    """The headers of the compressed response. Its ETag is weak: the bytes differ."""
    changed = [(b"content-encoding", b"gzip")]
    for name, value in headers:
        match name.lower():
            case b"content-length":
                continue
            case b"etag" if not value.startswith(b"W/"):
                changed.append((name, b"W/" + value))
            case _:
                changed.append((name, value))
    if length is not None:
        changed.append((b"content-length", str(length).encode()))
    return changed


def without_weak_etags(headers: Headers) -> Headers:
    """A request's headers with plain ETags: If-None-Match compares weakly (RFC 9110, 13.1.2)."""
    return [
        (name, value.replace(b"W/", b"") if name == b"if-none-match" else value)
        for name, value in headers
    ]
