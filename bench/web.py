"""A small HTTP/1.1 client: one kept-open connection, one request at a time.

httpx takes longer for a request than Canopy's whole path does, and would hide what is measured.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httptools

from bench.errors import RequestFailed


@dataclass(slots=True)
class Response:
    """A response, with the moments (time.perf_counter) at which the pieces of its body arrived."""

    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    status: int = 0

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class _Protocol(asyncio.Protocol):
    """Feeds the parser, which calls the `on_*` methods."""

    def __init__(self) -> None:
        self._response = Response()
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[Response] | None = None

    def expect(self) -> "asyncio.Future[Response]":
        self._response = Response()
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        return self._done

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            message = str(error or "the server closed the connection")
            self._done.set_exception(ConnectionError(message))

    def on_body(self, body: bytes) -> None:
        self._response.pieces.append((time.perf_counter(), body))

    def on_message_complete(self) -> None:
        self._response.status = self._parser.get_status_code()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._response)


class Connection:
    """A connection to 127.0.0.1 that stays open between requests, as real clients keep theirs."""

    def __init__(self, transport: asyncio.Transport, protocol: _Protocol) -> None:
        self._transport = transport
        self._protocol = protocol

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(_Protocol, "127.0.0.1", port)
        return cls(transport, protocol)

    async def send(self, request: bytes) -> Response:
        """Sends a request and reads the whole response. Raises RequestFailed, ConnectionError."""
        expected = self._protocol.expect()
        self._transport.write(request)
        response = await expected
        if response.status != 200:
            raise RequestFailed(f"{response.status}: {response.body[:300]!r}")
        return response

    def close(self) -> None:
        self._transport.close()


def post(path: str, port: int, key: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
