"""An HTTP/1 connection: uvicorn's on httptools, with limits, and without other protocols.

A malformed, oversized or slow request is answered with one error response, after which the
connection closes. If responses to earlier requests are still being sent, the connection closes
after those, without an error response.

Before a connection closes, its input is discarded for LINGER_SECONDS (RFC 9112, 9.6): closing a
socket with unread input resets it, and the client would lose the response.
"""

import asyncio
import urllib.parse
from asyncio import TimerHandle
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any, NoReturn, cast

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.server import refusals
from api.server.exchange import Exchange, Http10Exchange, LingeringTransport
from api.server.limits import (
    DISCARDED_BYTES,
    LINGER_SECONDS,
    TIMED_BYTES,
    Connections,
    Limits,
)
from api.server.refusals import Refusal
from api.server.response_headers import SECURITY
from broker.tunnel_protocol import is_tunnel

log = structlog.get_logger("canopy.api")


class Phase(Enum):
    """The part of a request that is being received."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()


class Rejected(Exception):
    """Stops the parser from within one of its callbacks."""


class TunnelProtocol(WebSocketsSansIOProtocol):
    """A connection after its request for a tunnel. `release()` is called at its end."""

    release: Callable[[], None]

    def connection_lost(self, exc: Exception | None) -> None:
        """Counts the connection no longer."""
        super().connection_lost(exc)
        self.release()

    def close_if_idle(self) -> None:
        """It is never idle: the application ends it."""


class HttpProtocol(HttpToolsProtocol):
    """See the module. `connections` counts those of all protocols of the server."""

    def __init__(self, *, limits: Limits, connections: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.url = b""
        self._limits = limits
        self._counter = connections
        self._host: str | None = None
        self._counted = False
        self._phase = Phase.NOTHING
        self._head_bytes = 0
        self._unreported = 0  # bytes received since the parser last reported something
        self._refusal: Refusal | None = None
        self._discarding = False  # nothing more is parsed
        self._discarded = 0
        self._lingering = False  # all is written; the connection closes
        self._stopping = False  # the server ends: no connection outlives its response
        self._receiving: Exchange | None = None  # whose request is not complete
        self._answering: Exchange | None = None  # the newest one that the application works on
        self._timed_bytes = 0  # of the body, since its timer was started
        self._timer: TimerHandle | None = None  # for what is received, or for lingering
        self._stalled: TimerHandle | None = None

    # ---- the transport's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection; refuses it beyond the limits."""
        super().connection_made(transport)
        self._host = self.client[0] if self.client else None
        self._counted = self._counter.open(self._host)
        if self._counted:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self._refuse(refusals.TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Disconnects every exchange of the connection from its client."""
        if self._counted:
            self._counter.close(self._host)
            self._counted = False
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._stalled is not None:
            self._stalled.cancel()
        for exchange in (self._answering, self._receiving):
            if exchange is not None and not exchange.response_complete:
                exchange.abandon()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses input and enforces the limits on unfinished heads."""
        if self._discarding:
            self._discard(len(data))
            return
        if self._phase is Phase.NOTHING:
            data = data.lstrip(b"\r\n")  # RFC 9112, 2.2: empty lines before a request line
            if not data:
                return
        self._unset_keepalive_if_required()
        self._unreported += len(data)
        refusal = self._parse(data)
        is_receiving = self._phase is not Phase.NOTHING
        if refusal is None and is_receiving and self._unreported > self._limits.head_bytes:
            refusal = refusals.HEAD_TOO_LARGE  # one endless header, trailer or chunk extension
        if refusal is not None:
            self._refuse(refusal)
        elif is_receiving and self._timer is None:
            self._start_timer()

    def pause_writing(self) -> None:
        """The write buffer is full: the client must read within `stalled_seconds`."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The write buffer has room again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def shutdown(self) -> None:
        """The server ends: the response under way is the last."""
        self._stopping = True
        super().shutdown()

    def close_if_idle(self) -> None:
        """Closes the connection if no request is open on it."""
        answered = self._answering is None or self._answering.response_complete
        if answered and self._phase is Phase.NOTHING and not self.pipeline:
            self.transport.close()

    # ---- the parser's side

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self._phase = Phase.HEAD
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        super().on_url(url)
        self._head_bytes += len(url)
        if len(self.url) > self._limits.url_bytes:
            self._reject(refusals.URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which is dropped because it could override a header."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.head_bytes or len(self.headers) >= self._limits.headers:
            self._reject(refusals.HEAD_TOO_LARGE)
        if self._phase is Phase.HEAD:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Starts the request, or queues it behind earlier ones of the connection."""
        self._received_head()
        if self.parser.get_method() == b"CONNECT":
            self._reject(refusals.NO_TUNNEL)
        if self.parser.should_upgrade():
            return  # `_parse` parses it again without that header
        version = self.parser.get_http_version()
        problem = refusals.framing_problem(version, self.headers)
        if problem is not None:
            self._reject(problem)
        if len(self.pipeline) >= self._limits.pipelined:
            self._reject(refusals.TOO_MANY_AT_ONCE)
        self._complete_scope(version)
        self._begin(self._exchange(version))

    def on_body(self, body: bytes) -> None:
        """A part of the body, buffered until the application receives it."""
        self._unreported = 0
        self._timed_bytes += len(body)
        if self._timed_bytes >= TIMED_BYTES:  # a large upload may take longer, in proportion
            self._timed_bytes = 0
            self._stop_timer()
        super().on_body(body)
        if len(self.cycle.body) > self._limits.unread_bytes:
            self._reject(refusals.BODY_TOO_LARGE)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self.parser.should_upgrade():
            return
        self._phase = Phase.NOTHING
        self._unreported = 0
        self._receiving = None
        self._stop_timer()
        super().on_message_complete()

    # ---- requests

    def _parse(self, data: bytes) -> Refusal | None:
        """Feeds the parser; returns why the request is refused.

        RFC 9110, 7.8: a server may ignore Upgrade. The parser does not: it stops after the head of
        such a request and leaves the body to the other protocol. So the head is parsed again
        without that header, and then what follows it. Only tunnels are another protocol.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._begins_tunnel():
                    self._become_tunnel()
                    return None
                head = refusals.without_upgrade(
                    self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
                )
                data = head + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError:
                return self._refusal or refusals.MALFORMED
            else:
                return None

    def _begins_tunnel(self) -> bool:
        if not self._should_upgrade() or not is_tunnel(self.url.partition(b"?")[0].decode("ascii")):
            return False
        return (self._answering is None or self._answering.response_complete) and not self.pipeline

    def _become_tunnel(self) -> None:
        self._phase = Phase.NOTHING
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.handle_websocket_upgrade()
        tunnel = cast(TunnelProtocol, self.transport.get_protocol())
        tunnel.release = partial(self._counter.close, self._host)

    def _complete_scope(self, version: str) -> None:
        parsed = httptools.parse_url(self.url)
        path = parsed.path.decode("ascii")
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        self.scope["raw_path"] = parsed.path
        self.scope["query_string"] = parsed.query or b""

    def _exchange(self, version: str) -> Exchange:
        kind = Http10Exchange if version == "1.0" else Exchange
        transport: Any = LingeringTransport(self.transport, self._close_lingering)
        return kind(
            scope=self.scope,
            transport=transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )

    def _begin(self, exchange: Exchange) -> None:
        self.cycle = self._receiving = exchange
        if self._answering is None or self._answering.response_complete:
            self._start_asgi_task(exchange, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Starts the next request that waits, unless this response was the connection's last."""
        if self._answering is not None:
            self._answering.transport.flush()  # of a response without a body
        if self._lingering:
            self.server_state.total_requests += 1
        else:
            super().on_response_complete()

    # ---- refusals

    def _reject(self, refusal: Refusal) -> NoReturn:
        self._refusal = refusal
        raise Rejected

    def _refuse(self, refusal: Refusal) -> None:
        """Stops receiving. The connection closes after pending responses, or else this error."""
        log.warning(
            "request refused", status=int(refusal.status), reason=refusal.message, peer=self._host
        )
        self._discarding = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        unfinished, self._receiving = self._receiving, None
        if self.pipeline and self.pipeline[0][0] is unfinished:
            self.pipeline.popleft()
            unfinished = None
        pending = self.pipeline[0][0] if self.pipeline else self._answering
        if pending is not None and pending is not unfinished and not pending.response_complete:
            pending.keep_alive = False
        elif unfinished is not None and unfinished.response_started:
            unfinished.transport.close()
        else:
            self._answer_refusal(refusal, unfinished)

    def _answer_refusal(self, refusal: Refusal, unfinished: Exchange | None) -> None:
        from api.errors import ApiError, last_response  # needs Django's settings

        if unfinished is not None:
            unfinished.abandon()
        error = ApiError(int(refusal.status), refusal.message, code="bad_request")
        headers, content = last_response(self.url.decode("latin-1"), error)
        headers += [*self.server_state.default_headers, *SECURITY]
        self.transport.write(refusals.as_bytes(refusal, headers, content))
        self._close_lingering()

    def _close_lingering(self) -> None:
        """Ends the output, and discards input until the client closes the connection."""
        if self._lingering or self.transport.is_closing():
            return
        self._lingering = self._discarding = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._stopping:
            self.transport.close()
        else:
            self.flow.resume_reading()
            self.transport.write_eof()
            self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > DISCARDED_BYTES:
            self.transport.abort()

    # ---- time

    def _received_head(self) -> None:
        self._phase = Phase.BODY
        self._unreported = self._timed_bytes = 0
        self._stop_timer()

    def _start_timer(self) -> None:
        seconds = self._limits.body_seconds
        if self._phase is Phase.HEAD:
            seconds = self._limits.head_seconds
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._phase is Phase.HEAD:
            self._refuse(refusals.HEAD_TOO_SLOW)
        else:
            self._refuse(refusals.BODY_TOO_SLOW)
