"""A small HTTP/1.1 client: one kept-open connection, one request at a time.

httpx takes longer for a request than Canopy's whole path does, so its own time would hide what is measured.
"""

import asyncio
import time
from dataclasses import dataclass, field

import httptools


class Refused(Exception):
    """An answer other than 200; the text is its status and the start of its body."""


@dataclass(slots=True)
class Answer:
    """A response with the moments (time.perf_counter) at which its parts came in."""

    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    status: int = 0
    ended: float = 0.0

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(piece for _, piece in self.pieces)

    def first(self, text: bytes) -> float:
        """When the body contained `text`. Raises ValueError if it never did."""
        seen = b""
        for at, piece in self.pieces:
            seen += piece
            if text in seen:
                return at
        raise ValueError(f"{text!r} is not in the answer: {seen[:300]!r}")


class _Protocol(asyncio.Protocol):
    """Feeds the parser; `on_*` is what httptools calls."""

    def __init__(self) -> None:
        self._answer = Answer()
        self._done: asyncio.Future[Answer] | None = None
        self._parser: httptools.HttpResponseParser

    def expect(self) -> "asyncio.Future[Answer]":
        self._answer = Answer()
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        return self._done

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(
                ConnectionError(str(error or "the server closed the connection"))
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._answer.pieces.append((time.perf_counter(), body))

    def on_message_complete(self) -> None:
        self._answer.ended = time.perf_counter()
        self._answer.status = self._parser.get_status_code()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._answer)


class Connection:
    """One connection to 127.0.0.1. It is kept open, as every real client's is."""

    def __init__(self, transport: asyncio.Transport, protocol: _Protocol) -> None:
        self._transport = transport
        self._protocol = protocol

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Raises OSError."""
        transport, protocol = await asyncio.get_running_loop().create_connection(
            _Protocol, "127.0.0.1", port
        )
        return cls(transport, protocol)

    async def ask(self, request: bytes) -> Answer:
        """Sends what `request()` made and reads the whole answer. Raises Refused, ConnectionError."""
        expected = self._protocol.expect()
        self._transport.write(request)
        answer = await expected
        if answer.status != 200:
            raise Refused(f"{answer.status}: {answer.body[:300]!r}")
        return answer

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()


def request(method: str, path: str, port: int, key: str | None = None, body: bytes = b"") -> bytes:
    """A request's bytes, made once and sent often."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body
