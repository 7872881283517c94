"""One request and its response on a connection."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class LingeringTransport:
    """What an exchange uses of its connection's transport, with another way to close it."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class Exchange(RequestResponseCycle):
    """uvicorn's request and response cycle, which can be disconnected from its client."""

    def abandon(self) -> None:
        """The application receives http.disconnect; what it still sends is dropped."""
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
