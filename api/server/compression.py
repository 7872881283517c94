"""gzip for who accepts it, except for streams and for what could betray a secret by its length.

BREACH: whoever makes a browser send requests whose text comes back beside a secret learns the secret from the lengths
of compressed answers. So what sets a cookie, and the pages of /admin/ (a person's data beside words from the address)
stay as they are. Elsewhere no answer holds both; and cookies are SameSite=Lax, so other sites' requests carry none.
"""

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from api.server.response_headers import Headers, Scope, header

LEAST_BYTES = 1024  # below this the headers weigh more than what is saved
_LEVEL = 4
_APART_BYTES = 65_536  # more than this is compressed in a thread: a stream must not wait for it
_GZIP = 16 + zlib.MAX_WBITS
_TYPES = re.compile(
    rb"(text/(?!event-stream)|application/(json|javascript|manifest\+json|xml|wasm|yaml)|image/svg\+xml)"
)
_VARY = (b"vary", b"Accept-Encoding")

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


def accepts_gzip(accept_encoding: bytes) -> bool:
    """Reads an Accept-Encoding header."""
    found: dict[bytes, bool] = {}
    for part in accept_encoding.lower().split(b","):
        name, _, parameters = part.partition(b";")
        quality = re.fullmatch(rb"\s*q\s*=\s*0(\.0*)?\s*", parameters)
        found[name.strip()] = quality is None
    return found.get(b"gzip", found.get(b"x-gzip", found.get(b"*", False)))


def is_compressible(path: str, status: int, headers: Headers) -> bool:
    """Whether a response may be compressed at all."""
    if status in (204, 206, 304) or path.startswith("/admin/"):
        return False
    if header(headers, b"content-encoding") or header(headers, b"set-cookie"):
        return False
    if not _TYPES.match(header(headers, b"content-type") or b""):
        return False
    length = header(headers, b"content-length")
    return length is None or int(length) >= LEAST_BYTES


class Compressor:
    """Passes one response on, compressed if its request accepts that and it is of that kind."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._path = scope["path"]
        self._accepted = scope["method"] != "HEAD" and accepts_gzip(header(scope["headers"], b"accept-encoding") or b"")
        self._send = send
        self._start: Message | None = None  # held back until the first part of the body is there
        self._deflate: Any = None

    async def start(self, message: Message) -> bool:
        """Sends the response's start, or holds it back; True if its body must go through `body`."""
        headers = message["headers"]
        if not is_compressible(self._path, message["status"], headers):
            await self._send(message)
            return False
        headers.append(_VARY)
        if not self._accepted:
            await self._send(message)
            return False
        self._start = message
        return True

    async def body(self, message: Message) -> None:
        """Sends a part of the body."""
        content, more = message.get("body", b""), message.get("more_body", False)
        start, self._start = self._start, None
        if start is not None:
            known = header(start["headers"], b"content-length") is not None
            if not more and len(content) < LEAST_BYTES and not known:
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
        if len(content) > _APART_BYTES:
            return await asyncio.to_thread(self._deflated, content, last)
        return self._deflated(content, last)

    def _deflated(self, content: bytes, last: bool) -> bytes:
        compressed: bytes = self._deflate.compress(content)
        return compressed + self._deflate.flush() if last else compressed


def _encoded(headers: Headers, length: int | None) -> Headers:
    """The headers of the compressed response. Its ETag is weak: the bytes differ from those of the plain one."""
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
    """A request's headers with ETags that compare byte by byte: If-None-Match is a weak comparison (RFC 9110)."""
    return [(name, value.replace(b"W/", b"") if name == b"if-none-match" else value) for name, value in headers]
