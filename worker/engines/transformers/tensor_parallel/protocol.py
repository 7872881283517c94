"""What the process that schedules tells those that hold the other shards of its model, and what they say to it.

One socket pair a follower, msgpack behind a length of four bytes. The parent's end closes with the parent, however that
dies: then the follower ends itself.
"""

import contextlib
import socket
import struct

import msgspec

_LENGTH = struct.Struct(">I")
_MOST = 1 << 20  # bytes read at a time


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Join the group and load your shard. Answered by Done or Failed."""

    rank: int
    ranks: int
    port: int  # of the group's store, on loopback
    folder: str
    device: str
    slots: int | None  # None: as many as fit on the tightest device
    threads: int
    seconds: float  # how long one rank waits for another within a step


class Fit(msgspec.Struct, frozen=True, tag=True):
    """Bring the shard onto slots, together. Answered."""


class Capture(msgspec.Struct, frozen=True, tag=True):
    """Record the decoding steps, together. Answered: Done says in `trouble` why that failed."""


class Plain(msgspec.Struct, frozen=True, tag=True):
    """Some rank could not record: decode without."""


class Prefill(msgspec.Struct, frozen=True, tag=True):
    """`pieces`: (slot, start, length, whole) of each."""

    pieces: list[tuple[int, int, int, int]]
    tokens: list[list[int]]
    ends: list[bool]
    fixed: bool = False


class Decode(msgspec.Struct, frozen=True, tag=True):
    """A token for each of these slots."""

    slots: list[int]
    positions: list[int]
    fixed: bool = False


class Feed(msgspec.Struct, frozen=True, tag=True):
    """So many tokens were chosen; rank 0 broadcasts them."""

    count: int


class Copy(msgspec.Struct, frozen=True, tag=True):
    """The first `tokens` of `source` are also in `slot`."""

    source: int
    slot: int
    tokens: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer to what is answered; the first one comes unasked, when the process is there."""

    trouble: str = ""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The follower ends with this."""

    reason: str


Order = Begin | Fit | Capture | Plain | Prefill | Decode | Feed | Copy
Report = Done | Failed


def packed_message(message: Order | Report) -> bytes:
    """As it goes over a line."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


class LineClosed(Exception):
    """The other end is gone."""


class Line:
    """One end of a socket pair. One thread may send while another receives."""

    def __init__(self, end: socket.socket, seconds: float) -> None:
        """`seconds`: how long `send` waits for room. `receive` waits for ever."""
        end.settimeout(seconds)
        self._end = end
        self._rest = bytearray()
        self._orders = msgspec.msgpack.Decoder(Order)
        self._reports = msgspec.msgpack.Decoder(Report)

    def send(self, packed: bytes) -> None:
        """Raises LineClosed, or TimeoutError if the other end reads nothing for so long; then the line is of no use
        any more.
        """
        try:
            self._end.sendall(packed)
        except TimeoutError:
            raise
        except OSError as error:
            raise LineClosed from error

    def order(self) -> Order:
        """The next one. Raises LineClosed."""
        return self._orders.decode(self._frame())

    def report(self) -> Report:
        """The next one. Raises LineClosed."""
        return self._reports.decode(self._frame())

    def fileno(self) -> int:
        """For `poll`."""
        return self._end.fileno()

    def close(self) -> None:
        """Also wakes whoever receives."""
        with contextlib.suppress(OSError):  # the other end was faster
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _frame(self) -> bytes:
        head = self._exactly(_LENGTH.size)
        return self._exactly(_LENGTH.unpack(head)[0])

    def _exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            try:
                data = self._end.recv(_MOST)
            except TimeoutError:
                continue
            except OSError as error:
                raise LineClosed from error
            if not data:
                raise LineClosed
            self._rest += data
        taken = bytes(self._rest[:count])
        del self._rest[:count]
        return taken
