"""The outermost layer of the ASGI application: what applies to every response.

Headers for browsers, CORS, compression, and an error in the API's shape if the application fails or
is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from api import errors
from api.environment import Environment
from api.errors import ApiError, NotRunning
from api.server.base_path import Scope, add_base_path, app_path, lacks_slash
from api.server.compression import (
    VARY,
    Compressor,
    Message,
    Send,
    accepts_gzip,
    is_compressible,
    without_weak_etags,
)
from api.server.response_headers import (
    Cors,
    Fields,
    Headers,
    Transport,
    by_name,
    client_of,
    with_defaults,
)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Edge:
    """Wraps `application`. `env`: the origins, proxies and public address.

    A proxy may pass the base path of the public address on or take it off: below here the scope has
    it, as `root_path` and in `path`; `app_path` is the path without it.
    """

    def __init__(self, application: Application, env: Environment) -> None:
        self._application = application
        self._base_path = env.base_path
        self._transport = Transport(env.public_url, env.proxies)
        self._proxies = env.proxies
        self._cors = Cors(env.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entrance for `http` scopes."""
        fields: Fields = dict(scope["headers"])  # the server lowers the names
        secure = self._transport.is_secure(scope, fields)
        if secure:
            scope["scheme"] = "https"
        scope["client"] = client_of(scope, fields, self._proxies)
        if b"if-none-match" in fields:
            scope["headers"] = without_weak_etags(scope["headers"])
        if self._base_path:
            add_base_path(scope, self._base_path)
        cors = self._cors.headers(app_path(scope), fields)
        response = _Response(scope, fields, send, secure, cors)
        allowed = self._cors.preflight(scope, fields)
        if allowed is not None:
            await response.send({"type": "http.response.start", "status": 204, "headers": allowed})
            await response.send({"type": "http.response.body"})
            return
        if lacks_slash(scope):
            await response.redirect(f"{self._base_path}/")
            return
        try:
            await self._application(scope, receive, response.send)
        except asyncio.CancelledError:  # by the server, at the end of its grace period
            await response.fail(NotRunning())
        except Exception as error:  # fate: logged, and answered if nothing was sent yet
            await response.fail(errors.unexpected(app_path(scope), error))


class _Response:
    """One response on its way out."""

    def __init__(
        self, scope: Scope, fields: Fields, send: Send, secure: bool, cors: Headers
    ) -> None:
        self._path = app_path(scope)
        self._is_head = scope["method"] == "HEAD"
        self._accepted = fields.get(b"accept-encoding", b"")
        self._send = send
        self._secure = secure
        self._cors = cors
        self._compressor: Compressor | None = None
        self._started = False

    async def send(self, message: Message) -> None:
        """The application's `send`."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._compressor is not None:
            await self._compressor.body(message)
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        headers = [*message.get("headers", []), *self._cors]
        present = by_name(headers)
        message = {**message, "headers": with_defaults(headers, present, self._secure)}
        if is_compressible(self._path, message["status"], present):
            message["headers"].append(VARY)
            if not self._is_head and accepts_gzip(self._accepted):
                self._compressor = Compressor(message, self._sent)
                return
        await self._sent(message)

    async def redirect(self, address: str) -> None:
        """Sends the browser to another address of this server."""
        headers = [(b"location", address.encode()), (b"content-length", b"0")]
        await self.send({"type": "http.response.start", "status": 308, "headers": headers})
        await self.send({"type": "http.response.body"})

    async def fail(self, error: ApiError) -> None:
        """Sends the error if no response has begun; else the server closes the connection."""
        if self._started:
            return
        headers, content = errors.last_response(self._path, error)
        headers += self._cors
        complete = with_defaults(headers, by_name(headers), self._secure)
        await self._sent(
            {"type": "http.response.start", "status": error.status, "headers": complete}
        )
        await self._sent({"type": "http.response.body", "body": content})

    async def _sent(self, message: Message) -> None:
        self._started = True
        await self._send(message)
