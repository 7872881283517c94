"""Django's ASGI handler without its thread per request.

The stock handler opens a thread-sensitive context for every request, and its signals alone start a
thread in it that lives as long as the response: a thousand streams would be a thousand threads,
each with its own database connection. Here all synchronous work of the process shares one thread
and one connection, the body is limited while it is read, and a client that leaves cancels its view.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from io import BytesIO
from typing import IO, Any, cast

from django.conf import settings
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix

from api import errors
from api.accounts import auth, scopes
from api.accounts.models import User
from api.errors import ApiError
from api.files.upload import FRAME_BYTES, Spool, is_upload
from api.http.sse import EventStream
from api.plans import plans
from api.requests.concurrency_limit import ConcurrencyLimiter, sender_of
from api.server.base_path import app_path
from api.server.body import Disconnected, body_chunks, discard_body, read_body
from api.server.limits import peer_of
from api.server.observation import Observer

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Scope = dict[str, Any]


class Handler(ASGIHandler):
    """Serves HTTP requests; cancels a request when its client leaves."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer
        self._endless: dict[_Exchange, User | None] = {}  # with their readers, if known
        self._keys: dict[_Exchange, str] = {}  # of those that are read with a key
        self._limiter = ConcurrencyLimiter()
        self._spool = Spool(settings.ENV.home / "files" / "incoming")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entrance for `http` scopes."""
        set_script_prefix(scope.get("root_path", "") or "/")
        is_known = partial(_is_known, scope)
        try:
            file = await self._receive_body(scope, receive, is_known)
        except Disconnected:
            return
        except ApiError as error:
            self._observer.refused(scope["method"], error.status)
            await self._refuse(scope, receive, send, error)
            return
        request, refusal = self.create_request(scope, cast(BytesIO, file))
        del file
        if request is None:
            unreadable = ApiError(
                refusal.status_code, "this request cannot be read", code="bad_request"
            )
            await self.send_response(errors.response(app_path(scope), unreadable), send)
            return
        await self._answer(request, _Exchange(receive, send))

    async def _receive_body(
        self, scope: Scope, receive: Receive, is_known: Callable[[], Awaitable[bool]]
    ) -> IO[bytes]:
        """The body in memory, or an upload on disk. Raises as `body_chunks` and `spool` do."""
        if is_upload(scope["method"], app_path(scope)):
            most = settings.ENV.files.file_bytes + FRAME_BYTES
            sender = peer_of(str((scope.get("client") or ("", 0))[0]))
            return await self._spool.spool(body_chunks(scope, receive, most, is_known), sender)
        # No other reference to the body: it is released while the answer is awaited.
        return BytesIO(await read_body(scope, receive, settings.MAX_BODY, is_known))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
        """Answers before the body is read, discards the rest of it, and closes the connection."""
        headers, content = errors.last_response(app_path(scope), error)
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": True})
        await discard_body(scope, receive)
        await send({"type": "http.response.body", "body": b""})

    @classmethod
    def chunk_bytes(cls, data: bytes) -> Iterable[tuple[bytes, bool]]:
        """Django's split of a large body, without its cost for events, which are short."""
        if 0 < len(data) <= cls.chunk_size:
            return ((data, True),)
        return super().chunk_bytes(data)

    def end_streams(self) -> None:
        """Ends the streams that would never end by themselves: the server stops."""
        for exchange in list(self._endless):
            exchange.end_stream()

    def readers(self) -> dict[int, User]:
        """Who reads an endless stream, by key, with the rights that they had at its beginning."""
        return {user.pk: user for user in self._endless.values() if user is not None}

    def end_streams_of(self, readers: Collection[int]) -> None:
        """Ends the endless streams of these users."""
        for exchange, user in list(self._endless.items()):
            if user is not None and user.pk in readers:
                exchange.end_stream()

    def reading_keys(self) -> set[str]:
        """The API keys, by name, with which endless streams are read."""
        return set(self._keys.values())

    def end_streams_with(self, names: Collection[str]) -> None:
        """Ends the endless streams that are read with these keys."""
        for exchange, name in list(self._keys.items()):
            if name in names:
                exchange.end_stream()

    async def _answer(self, request: Any, exchange: "_Exchange") -> None:
        response: HttpResponseBase | None = None
        scopes.current.set(scopes.NO_KEY)  # auth.py may set others, for this request alone
        plans.current.set(None)
        with exchange, self._observer.observe(request) as observation:
            try:
                async with self._limiter.permit(_sender(request)):
                    response = await self.run_get_response(request)
                observation.answered(response)
                if isinstance(response, EventStream) and response.endless:
                    self._endless[exchange] = _reader(request)
                    self._note_key(exchange)
                await self.send_response(response, exchange.send)
            except asyncio.CancelledError:
                if not exchange.cut_short:
                    raise
                await exchange.complete()
            finally:
                self._endless.pop(exchange, None)
                self._keys.pop(exchange, None)
                await _close(response)

    def _note_key(self, exchange: "_Exchange") -> None:
        name = scopes.current.get().name
        if name:
            self._keys[exchange] = name


def _sender(request: ASGIRequest) -> bytes:
    host, _ = request.scope.get("client") or ("", 0)
    return sender_of(request.scope["headers"], host)


def _reader(request: ASGIRequest) -> User | None:
    """Who passed the endpoint's authentication."""
    user = getattr(request, "auth", None)
    return user if isinstance(user, User) else None


async def _is_known(scope: Scope) -> bool:
    """Whether the request's headers have a valid key or session."""
    return await auth.is_known(ASGIRequest(scope, BytesIO()))


async def _close(response: HttpResponseBase | None) -> None:
    if isinstance(response, EventStream):
        await response.aclose()
    if response is not None:
        response.close()


class _Exchange:
    """One request's connection; cancels the task that entered it when the client leaves."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.send = send
        self._receive = receive
        self._work = cast("asyncio.Task[None]", asyncio.current_task())
        self._watcher: asyncio.Task[None] | None = None
        self._left = False
        self._ended = False

    def __enter__(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    def __exit__(self, *exception: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    def end_stream(self) -> None:
        """Ends a streamed response where it is."""
        self._ended = True
        self._work.cancel()

    @property
    def cut_short(self) -> bool:
        """True if the client left or the stream was ended: only then is a cancellation ours."""
        return self._left or self._ended

    async def complete(self) -> None:
        """Takes the cancellation back, and ends the response of a client that is still there."""
        self._work.uncancel()
        if not self._left:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._work.cancel()
