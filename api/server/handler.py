"""Django's ASGI handler without its thread per request.

The stock handler opens a thread-sensitive context for every request, and its signals alone start a thread in it
that lives as long as the response: a thousand streams would be a thousand threads, each with its own database
connection. Here all synchronous work of the process shares one thread and one kept-open connection, a request
costs none, the body is limited while it is read, and a client that leaves cancels its view.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from io import BytesIO
from typing import Any, cast

from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix

from api import errors
from api.entrance import Entrance
from api.sse import EventStream

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Scope = dict[str, Any]

_DRAIN = 8 << 20  # bytes of a too large body that are still read, so that the client gets to read the refusal


class Disconnected(Exception):
    """The client left before its request was complete."""


class BodyTooLarge(Exception):
    """The body exceeds settings.MAX_BODY."""


class Handler(ASGIHandler):
    """Serves HTTP requests: read, answer, cancelled when the client leaves."""

    def __init__(self) -> None:
        super().__init__()
        self._endless: set[_Exchange] = set()
        self._entrance = Entrance()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entrance for `http` scopes."""
        try:
            body = await read_body(receive, settings.MAX_BODY)
        except Disconnected:
            return
        except BodyTooLarge:
            await self.send_response(errors.too_large(scope["path"], settings.MAX_BODY), send)
            return
        set_script_prefix(scope.get("root_path", "") or "/")
        request, refusal = self.create_request(scope, BytesIO(body))
        if request is None:
            await self.send_response(refusal, send)
            return
        await self._answer(request, _Exchange(receive, send))

    @classmethod
    def chunk_bytes(cls, data: bytes) -> Iterable[tuple[bytes, bool]]:
        """Django's way to cut a large body up; an event is none, and there are thousands a second."""
        return ((data, True),) if 0 < len(data) <= cls.chunk_size else super().chunk_bytes(data)

    def end_streams(self) -> None:
        """Ends the streams that would never end by themselves: the server stops."""
        for exchange in list(self._endless):
            exchange.end_stream()

    async def _answer(self, request: Any, exchange: "_Exchange") -> None:
        response: HttpResponseBase | None = None
        with exchange:
            try:
                async with self._entrance.turn():
                    response = await self.run_get_response(request)
                if isinstance(response, EventStream) and response.endless:
                    self._endless.add(exchange)
                await self.send_response(response, exchange.send)
            except asyncio.CancelledError:
                if not exchange.cut_short:
                    raise
                await exchange.complete()
            finally:
                self._endless.discard(exchange)
                await _close(response)


async def _close(response: HttpResponseBase | None) -> None:
    if isinstance(response, EventStream):
        await response.aclose()
    if response is not None:
        response.close()


class _Exchange:
    """One request's connection; cancels the task that made it when the client leaves."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.send = send
        self._receive = receive
        self._work = cast("asyncio.Task[None]", asyncio.current_task())
        self._left = False
        self._ended = False

    def __enter__(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    def __exit__(self, *exception: object) -> None:
        self._watcher.cancel()

    def end_stream(self) -> None:
        """Ends a streamed response where it is."""
        self._ended = True
        self._cancel()

    @property
    def cut_short(self) -> bool:
        """True if the client left or the stream was ended: only then a cancellation is ours."""
        return self._left or self._ended

    async def complete(self) -> None:
        """Takes the cancellation back, and tells a client that is still there that nothing more comes."""
        self._work.uncancel()
        if not self._left:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._cancel()

    def _cancel(self) -> None:
        self._work.cancel()


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body. Raises Disconnected, or BodyTooLarge after at most `limit` plus 8 MiB."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        more = message.get("more_body", False)
        if size > limit and (not more or size > limit + _DRAIN):
            raise BodyTooLarge
        if not more:
            return b"".join(chunks)
