"""One streamed request, read as it comes: what its reader was told while waiting, and when each token came.

Plain sockets: a thousand of them must not cost more than what they measure.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from bench import web
from bench.fair.service import MODEL

_SIGN = b"~"  # once in every token, and nowhere else in a response
_WORD = "word~"
_WAITING = b": waiting: "
_POSITION = re.compile(rb"number (\d+) in line")
_SECONDS = re.compile(rb"starts in about ([\d.]+) (s|min|h)\b")
_UNITS = {b"s": 1.0, b"min": 60.0, b"h": 3600.0}


@dataclass(frozen=True, slots=True)
class Told:
    """What a waiting reader was told at one moment: the place in the line, and the seconds until the start."""

    at: float
    position: int | None
    seconds: float | None


@dataclass(slots=True)
class Track:
    """One request. Moments are time.perf_counter's; `tokens`: when each piece came and how many it held."""

    sent: float = 0.0
    accepted: float | None = None  # when the response began: the job is in the broker
    told: list[Told] = field(default_factory=list)
    tokens: list[tuple[float, int]] = field(default_factory=list)
    ended: float | None = None
    error: str = ""

    @property
    def first(self) -> float | None:
        """When its first token came."""
        return self.tokens[0][0] if self.tokens else None

    @property
    def estimate(self) -> Told | None:
        """The first time its reader was told a time."""
        return next((told for told in self.told if told.seconds is not None), None)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, by whom. `flex`: in class batch."""

    key: str
    tokens: int
    flex: bool = False

    def request(self, port: int) -> bytes:
        """As bytes."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": _WORD}],
            "max_tokens": self.tokens,
            "stream": True,
            **({"service_tier": "flex"} if self.flex else {}),
        }
        return web.request(
            "POST", "/v1/chat/completions", port, self.key, json.dumps(body).encode()
        )


def told(line: bytes, at: float) -> Told | None:
    """What a line of the stream tells someone who waits; None if it is no such line."""
    if not line.startswith(_WAITING):
        return None
    position, seconds = _POSITION.search(line), _SECONDS.search(line)
    return Told(
        at,
        int(position[1]) if position else None,
        float(seconds[1]) * _UNITS[seconds[2]] if seconds else None,
    )


class Asking(asyncio.Protocol):
    """A request on a connection of its own. `accepted()` and `ended()` are called once each: when the response begins;
    at the answer's end, or when it failed.
    """

    def __init__(
        self,
        request: bytes,
        ended: Callable[["Asking"], None],
        accepted: Callable[[], None] = lambda: None,
    ) -> None:
        self.track = Track()
        self._request = request
        self._ended = ended
        self._accepted = accepted
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def start(
        cls,
        port: int,
        question: Question,
        ended: Callable[["Asking"], None],
        accepted: Callable[[], None] = lambda: None,
    ) -> "Asking":
        """Sends it. Raises OSError."""
        make = partial(cls, question.request(port), ended, accepted)
        _, made = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", port)
        return made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.track.sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        at = time.perf_counter()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line, at)

    def _take(self, line: bytes, at: float) -> None:
        if self.track.accepted is None:
            self.track.accepted = at
            self._accepted()
            if not line.startswith(b"HTTP/1.1 200 "):
                self._end(line.decode(errors="replace").strip())
        elif (heard := told(line, at)) is not None:
            self.track.told.append(heard)
        elif line.startswith(b'data: {"error"'):
            self._end(line.decode(errors="replace"))
        elif line == b"data: [DONE]":
            self.track.ended = at
            self._end("")
        elif count := line.count(_SIGN):
            self.track.tokens.append((at, count))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"closed by the server: {error or 'without a reason'}")

    def abort(self) -> None:
        """Leaves; the service ends the job. `ended` is not called."""
        self._ended = lambda _asking: None
        self._close()

    def _end(self, error: str) -> None:
        if self._transport is None:
            return
        self.track.error = error
        self._close()
        self._ended(self)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
