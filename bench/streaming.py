"""Streamed answers over plain sockets: thousands must cost less than what they measure."""

import asyncio
import json
import time
from typing import Any, Self, cast

from bench.errors import RequestFailed
from bench.stats import Timeline

MARK = b"~"  # once in every token that `echo` repeats, and nowhere else: nothing is parsed
WORD = "word~"
_REFUSAL_BYTES = 160  # of a refusal that are kept


def chat(port: int, key: str, model: str, tokens: int) -> bytes:
    """A request for `tokens` words with MARK."""
    messages = [{"role": "user", "content": " ".join([WORD] * 8)}]
    body = {"model": model, "messages": messages, "max_tokens": tokens}
    return post("/v1/chat/completions", port, key, body)


def post(path: str, port: int, key: str, body: dict[str, Any]) -> bytes:
    """A request for a streamed answer."""
    content = json.dumps({**body, "stream": True}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class StreamClient(asyncio.Protocol):
    """A connection that stays open, and the answer that it reads: one at a time."""

    def __init__(self) -> None:
        self.timeline = Timeline()  # `error` says what was wrong
        self.accepted = asyncio.Event()  # the response has begun, or failed
        self.ended = asyncio.Event()
        self._partial_line = b""
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, port: int) -> Self:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(cls, "127.0.0.1", port)
        return client

    @classmethod
    async def ask(cls, port: int, request: bytes) -> Self:
        """On a connection of its own. Raises OSError."""
        client = await cls.open(port)
        client.send(request)
        return client

    def send(self, request: bytes) -> None:
        """Begins another answer; the one before has ended."""
        self.timeline = Timeline(time.perf_counter())
        self.accepted.clear()
        self.ended.clear()
        if self._transport is None:
            self._fail("closed by the server")
        else:
            self._transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        lines = (self._partial_line + data).split(b"\n")
        self._partial_line = lines.pop()
        self.read(lines, now)

    def read(self, lines: list[bytes], now: float) -> None:
        """The lines that arrived together."""
        tokens = 0
        for line in lines:
            if MARK in line:
                tokens += line.count(MARK)
            else:
                self.read_event(line, now)
        if tokens:
            self.timeline.add(now, tokens)

    def read_event(self, line: bytes, now: float) -> None:
        """A line without tokens."""
        if line.startswith(b"HTTP/1.1 "):
            self.accepted.set()
            if not line.startswith(b"HTTP/1.1 200 "):
                self._fail(line[:_REFUSAL_BYTES].decode(errors="replace").strip())
        elif line.startswith(b'data: {"error"'):
            self._fail(line.decode(errors="replace"))
        elif line == b"data: [DONE]":
            self.timeline.ended = now
        elif line == b"0\r" and self.timeline.ended is not None:  # the last chunk
            self.ended.set()

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._fail(f"closed by the server: {error or 'without a reason'}")

    def check(self) -> None:
        """Raises RequestFailed if the answer failed."""
        if self.timeline.error:
            raise RequestFailed(self.timeline.error)

    def close(self) -> None:
        """An answer that runs is cancelled."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _fail(self, error: str) -> None:
        self.close()
        if not self.ended.is_set():
            self.timeline.error = error
        self.accepted.set()
        self.ended.set()
