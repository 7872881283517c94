"""One request and its response on an HTTP connection."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class LingeringTransport:
    """The part of a transport that an exchange uses, with a `close` that lingers.

    The first write, a response's head, waits for the next write or the next turn of the event loop:
    head and body then leave with one system call and arrive in one packet.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write: Callable[[bytes], None] = self._write_head
        self.is_closing = transport.is_closing
        self._transport = transport
        self._close = close
        self._head = b""

    def flush(self) -> None:
        """Sends the head if it still waits."""
        if self._head:
            head, self._head = self._head, b""
            self.write = self._transport.write
            self.write(head)

    def close(self) -> None:
        """Ends the connection after what was written."""
        self.flush()
        self._close()

    def _write_head(self, head: bytes) -> None:
        self._head = head
        self.write = self._write_behind_head
        asyncio.get_running_loop().call_soon(self.flush)

    def _write_behind_head(self, data: bytes) -> None:
        head, self._head = self._head, b""
        self.write = self._transport.write
        self.write(head + data)


class Exchange(RequestResponseCycle):
    """uvicorn's request and response cycle, with a way to disconnect it from its client."""

    transport: LingeringTransport  # type: ignore[assignment]  # uvicorn's own uses no more of it

    def abandon(self) -> None:
        """The application receives http.disconnect, and what it sends is dropped."""
        self.disconnected = True
        self.message_event.set()


class Http10Exchange(Exchange):
    """HTTP/1.0 has no chunked coding: a body of unknown length ends with the connection."""

    _ends_with_connection = False

    async def send(self, message: Any) -> None:
        """The application's side: a response's start, and then its body."""
        if message["type"] == "http.response.start":
            self._choose_framing(message)
        elif self._ends_with_connection:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)

    def _choose_framing(self, message: Any) -> None:
        names = [name.lower() for name, _ in message.get("headers", [])]
        if b"content-length" not in names and not self.response_started:
            self._ends_with_connection = True
            self.chunked_encoding = False  # neither of the two framings
