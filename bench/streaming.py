"""Streamed chat completions over plain sockets: thousands must cost less than what they measure.

The question is made of a word with MARK in it, which `echo` repeats: to count tokens is to count
MARK, and no event needs to be parsed.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from bench import web
from bench.timeline import Timeline

MARK = b"~"  # once in every token, and nowhere else in a response
WORD = "word~"
_WAITING = b": waiting: "
_POSITION = re.compile(rb"number (\d+) in line")
_WAIT = re.compile(rb"starts in about ([\d.]+) (s|min|h)\b")
_UNITS = {b"s": 1.0, b"min": 60.0, b"h": 3600.0}
_REFUSAL_BYTES = 160  # of a refusal that are kept

Callback = Callable[["StreamClient"], None]


def _ignore(_client: "StreamClient") -> None:
    """The callback of those who need none."""


def chat(port: int, key: str, model: str, tokens: int, **fields: Any) -> bytes:
    """A streamed request for `tokens` words with MARK; `fields` are added to its body."""
    messages = [{"role": "user", "content": " ".join([WORD] * 8)}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "stream": True, **fields}
    return web.post("/v1/chat/completions", port, key, body)


@dataclass(frozen=True, slots=True)
class WaitNotice:
    """What a waiting reader learned at one moment: position, and estimated seconds to the start."""

    at: float
    position: int | None
    seconds: float | None


def wait_notice(line: bytes, at: float) -> WaitNotice | None:
    """The notice in a line of the stream; None if the line is another one."""
    if not line.startswith(_WAITING):
        return None
    position, wait = _POSITION.search(line), _WAIT.search(line)
    return WaitNotice(
        at,
        int(position[1]) if position else None,
        float(wait[1]) * _UNITS[wait[2]] if wait else None,
    )


class StreamClient(asyncio.Protocol):
    """One request on a connection of its own.

    `on_accept` is called when the response begins, `on_end` once: at the end of the answer, or
    when the request has failed, with `timeline.error` set.
    """

    def __init__(self, request: bytes, on_end: Callback, on_accept: Callback) -> None:
        self.timeline = Timeline()
        self.notices: list[WaitNotice] = []
        self._request = request
        self._on_end = on_end
        self._on_accept = on_accept
        self._partial_line = b""
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def start(
        cls, port: int, request: bytes, on_end: Callback = _ignore, on_accept: Callback = _ignore
    ) -> "StreamClient":
        """Connects and sends. Raises OSError."""
        make = partial(cls, request, on_end, on_accept)
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(make, "127.0.0.1", port)
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.timeline.sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        tokens = 0
        for line in lines:
            if MARK in line:
                tokens += line.count(MARK)
            else:
                self._read(line, now)
        if tokens:
            self.timeline.add(now, tokens)

    def _read(self, line: bytes, now: float) -> None:
        """A line without tokens."""
        if self.timeline.accepted is None:
            self.timeline.accepted = now
            if line.startswith(b"HTTP/1.1 200 "):
                self._on_accept(self)
            else:
                self._end(line[:_REFUSAL_BYTES].decode(errors="replace").strip())
        elif (notice := wait_notice(line, now)) is not None:
            self.notices.append(notice)
        elif line.startswith(b'data: {"error"'):
            self._end(line.decode(errors="replace"))
        elif line == b"data: [DONE]":
            self.timeline.ended = now
            self._end("")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"closed by the server: {error or 'without a reason'}")

    def abort(self) -> None:
        """Closes the connection, which cancels the job. `on_end` is not called."""
        self._on_end = _ignore
        self._close()

    def _end(self, error: str) -> None:
        if self._transport is not None:
            self.timeline.error = error
            self._close()
            self._on_end(self)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
