"""The outermost layer of the ASGI application: what holds for every response, whoever makes it.

Headers for browsers, CORS, compression, and an answer in the API's shape where the application fails or is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from api import errors
from api.environment import Environment
from api.errors import ApiError
from api.server.compression import Compressor, Message, Send, without_weak_etags
from api.server.response_headers import Cors, Headers, Scope, Transport, with_defaults

Receive = Callable[[], Awaitable[dict[str, Any]]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

STOPPING = "the service is stopping; send the request again"


class Edge:
    """Wraps `application`. `env`: which origins, proxies and public address there are."""

    def __init__(self, application: Application, env: Environment) -> None:
        self._application = application
        self._transport = Transport(env.public_url, env.proxies)
        self._cors = Cors(env.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entrance for `http` scopes."""
        secure = self._transport.is_secure(scope)
        scope = {
            **scope,
            "scheme": "https" if secure else "http",
            "headers": without_weak_etags(scope["headers"]),
        }
        response = _Response(scope, send, secure, self._cors.headers(scope))
        allowed = self._cors.preflight(scope)
        if allowed is not None:
            await response.send({"type": "http.response.start", "status": 204, "headers": allowed})
            await response.send({"type": "http.response.body"})
            return
        try:
            await self._application(scope, receive, response.send)
        except asyncio.CancelledError:  # only the server's stop cancels; it waits for nobody
            await response.fail(ApiError(503, STOPPING, code="unavailable"))
        except Exception as error:  # fate: logged, and answered if nothing was sent yet
            await response.fail(errors.unexpected(scope["path"], error))


class _Response:
    """One response on its way out."""

    def __init__(self, scope: Scope, send: Send, secure: bool, cors: Headers) -> None:
        self._path = scope["path"]
        self._send = send
        self._secure = secure
        self._cors = cors
        self._compressor = Compressor(scope, self._sent)
        self._compressing = False
        self._started = False

    async def send(self, message: Message) -> None:
        """What the application calls `send`."""
        if message["type"] == "http.response.start":
            headers = with_defaults([*message.get("headers", []), *self._cors], self._secure)
            self._compressing = await self._compressor.start({**message, "headers": headers})
        elif self._compressing:
            await self._compressor.body(message)
        else:
            await self._sent(message)

    async def fail(self, error: ApiError) -> None:
        """Answers with the error if nothing was sent. Otherwise the server closes the connection."""
        if self._started:
            return
        self._compressing = False
        refusal = errors.response(self._path, error)
        headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        headers += [
            (b"content-length", str(len(refusal.content)).encode()),
            (b"connection", b"close"),
            *self._cors,
        ]
        start = {"type": "http.response.start", "status": error.status}
        await self._sent({**start, "headers": with_defaults(headers, self._secure)})
        await self._sent({"type": "http.response.body", "body": refusal.content})

    async def _sent(self, message: Message) -> None:
        self._started = True
        await self._send(message)
