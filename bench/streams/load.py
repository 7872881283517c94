"""The load: one process that opens many streams and writes down when their tokens came. `python -m bench.streams.load`

It is a process of its own so that its processor time is its own, and it does little for a token: a chunk of a response
is searched for a sign that only tokens contain. The order comes on standard input; on standard output it says BEGIN and
END of the measured window, and what was read in it (Outcome), a line each.
"""

import asyncio
import gc
import itertools
import json
import resource
import sys
import time
from functools import partial
from typing import cast

import msgspec

from bench import web
from bench.streams.schedule import Reading, Spread, Track, read

BEGIN, END = "begin", "end"
SIGN = b"~"  # once in every token, and nowhere else in a response
_WORD = "word~"
_SETTLE = 1.0  # seconds from the last start to the window
_BEAT = 0.01  # seconds between two looks at the own lateness
_REFUSAL = 160  # bytes of a refusal that are kept


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. The streams are dealt out to the `ports` in turn, `starts` a second."""

    ports: tuple[int, ...]
    key: str
    model: str
    streams: int
    rate: float  # tokens a second, as the engine makes them
    starts: float
    seconds: float  # length of the window


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was read, and how late this process itself was at its own timers: as late it may have seen a token."""

    reading: Reading
    own_lag: Spread


class _Stream(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, request: bytes, track: Track) -> None:
        self._request = request
        self._track = track
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._track.sent = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        tokens = data.count(SIGN)
        if tokens:
            self._track.took(time.perf_counter(), tokens)
        elif not self._begun and not data.startswith(b"HTTP/1.1 200 "):
            self._track.error = data[:_REFUSAL].decode(errors="replace").partition("\r\n")[0]
        elif b"[DONE]" in data:
            self._track.error = "ended early"
        self._begun = True

    def connection_lost(self, error: Exception | None) -> None:
        self._track.error = (
            self._track.error or f"closed by the server: {error or 'without a reason'}"
        )


async def run(order: Order) -> Outcome:
    """Starts the streams one after the other, measures while all of them run, and leaves."""
    words = _words(order)
    tracks: list[Track] = []
    streams: list[_Stream] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number, port in zip(range(order.streams), itertools.cycle(order.ports), strict=False):
        await asyncio.sleep(began + number / order.starts - loop.time())
        tracks.append(Track(order.rate))
        _, stream = await loop.create_connection(
            partial(_Stream, words[port], tracks[-1]), "127.0.0.1", port
        )
        streams.append(stream)
    await asyncio.sleep(_SETTLE)
    gc.freeze()
    _tell(BEGIN)
    begin = time.perf_counter()
    lag = await _beat(order.seconds)
    end = time.perf_counter()
    _tell(END)
    outcome = Outcome(reading=read(tracks, begin, end), own_lag=Spread.of(lag))
    for stream in streams:
        stream.transport.abort()
    return outcome


async def _beat(seconds: float) -> list[float]:
    """By how much each of many short sleeps in those seconds was too long."""
    until = time.perf_counter() + seconds
    late: list[float] = []
    while (now := time.perf_counter()) < until:
        await asyncio.sleep(_BEAT)
        late.append(time.perf_counter() - now - _BEAT)
    return late


def _words(order: Order) -> dict[int, bytes]:
    """The request, by port. It asks for more tokens than can come until all is over."""
    life = order.streams / order.starts + _SETTLE + order.seconds
    body = json.dumps({
        "model": order.model,
        "messages": [{"role": "user", "content": " ".join([_WORD] * 8)}],
        "max_tokens": int(2 * life * order.rate) + 1000,
        "stream": True,
    }).encode()  # fmt: skip
    return {
        port: web.request("POST", "/v1/chat/completions", port, order.key, body)
        for port in order.ports
    }


def _tell(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Does what standard input says."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a stream is an open file
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    gc.disable()  # it would be late because of itself
    _tell(msgspec.json.encode(asyncio.run(run(order))).decode())


if __name__ == "__main__":
    main()
