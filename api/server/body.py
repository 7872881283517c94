"""Reads a request's body: at most UNKNOWN_BYTES before its sender is authenticated."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from api.errors import BodyTooLarge, UnknownSender
from api.server.base_path import Scope
from api.server.limits import DISCARDED_BYTES

UNKNOWN_BYTES = 65_536  # of the body of a sender who is not authenticated
DISCARD_SECONDS = 10.0  # how long a refused body is read and discarded

Receive = Callable[[], Awaitable[dict[str, Any]]]


class Disconnected(Exception):
    """The client left before its request was complete."""


async def read_body(
    scope: Scope, receive: Receive, limit: int, is_known: Callable[[], Awaitable[bool]]
) -> bytes:
    """The whole body. See body_chunks."""
    return b"".join([chunk async for chunk in body_chunks(scope, receive, limit, is_known)])


async def body_chunks(
    scope: Scope, receive: Receive, limit: int, is_known: Callable[[], Awaitable[bool]]
) -> AsyncIterator[bytes]:
    """The body as it arrives. `is_known`: whether its sender is authenticated; asked above
    UNKNOWN_BYTES.

    Raises Disconnected, BodyTooLarge or UnknownSender as early as possible: the rest is unread.
    """
    declared = _declared_length(scope)
    if declared > limit:
        raise BodyTooLarge(limit)
    if declared > UNKNOWN_BYTES and not await is_known():
        raise UnknownSender(UNKNOWN_BYTES)
    known = declared > UNKNOWN_BYTES
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(limit)
        if size > UNKNOWN_BYTES and not known:
            known = await is_known()
            if not known:
                raise UnknownSender(UNKNOWN_BYTES)
        more = message.get("more_body", False)
        yield chunk


async def discard_body(scope: Scope, receive: Receive) -> None:
    """Discards a refused body within bounds: many clients send all of it before they read."""
    # A client that waits for `100 Continue` sends no body after an error response.
    if dict(scope["headers"]).get(b"expect", b"").lower() == b"100-continue":
        return
    size = 0
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            more = True
            while more and size < DISCARDED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        pass


def _declared_length(scope: Scope) -> int:
    """0 without a Content-Length; the server has checked its form."""
    return int(dict(scope["headers"]).get(b"content-length", b"0"))
