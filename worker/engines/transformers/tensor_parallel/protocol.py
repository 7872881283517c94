"""RPC between the leader, which schedules, and the followers, which hold the other shards.

One socket pair per follower; a message is msgpack behind a length of four bytes. The leader's end
closes with its process, however that dies: then the follower ends itself.
"""

import contextlib
import socket
import struct

import msgspec

from worker.engines.transformers.model.step import BlockRange, PrefillChunk, SharedPrefix

_LENGTH = struct.Struct(">I")
_READ_BYTES = 1 << 20  # at a time


class LoadShard(msgspec.Struct, frozen=True, tag=True):
    """Join the group and load your shard. Answered."""

    rank: int
    ranks: int
    port: int  # of the group's store, on loopback
    folder: str
    device: str
    slots: int | None  # None: as many as fit on the tightest device
    threads: int
    timeout: float  # seconds that one rank waits for another within a step


class CreateRunner(msgspec.Struct, frozen=True, tag=True):
    """Create the shard's runner, in step with all ranks. Answered."""


class CaptureGraphs(msgspec.Struct, frozen=True, tag=True):
    """Capture the graphs, in step with all ranks. Answered; `Done.error` says why that failed."""

    compiled: bool  # the layers


class DropGraphs(msgspec.Struct, frozen=True, tag=True):
    """Some rank could not capture its graphs: compute without, and without compiled layers."""


class Prefill(msgspec.Struct, frozen=True, tag=True):
    """`ModelRunner.prefill`."""

    chunks: list[PrefillChunk]
    tokens: list[list[int]]
    ends_prompt: list[bool]
    slots: list[int]  # of the rows that decode in the same pass
    positions: list[int]
    batch_invariant: bool = False
    every_token: bool = False
    hidden: bool = False


class Decode(msgspec.Struct, frozen=True, tag=True):
    """`ModelRunner.decode`."""

    slots: list[int]
    positions: list[int]
    batch_invariant: bool = False


class Feed(msgspec.Struct, frozen=True, tag=True):
    """`ModelRunner.feed`; rank 0 broadcasts the tokens from device to device."""

    count: int


class CopyPrefix(msgspec.Struct, frozen=True, tag=True):
    """`ModelRunner.copy_prefix`."""

    source: int
    slot: int
    tokens: int


class SetBlocks(msgspec.Struct, frozen=True, tag=True):
    """`ModelRunner.set_blocks`."""

    ranges: list[BlockRange]


class SharePrefixes(msgspec.Struct, frozen=True, tag=True):
    """`ModelRunner.share_prefixes`."""

    prefixes: list[SharedPrefix]


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer to a call that is answered. Also sent, unasked, when the process has started."""

    error: str = ""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The follower ends for this reason."""

    reason: str


Call = (
    LoadShard
    | CreateRunner
    | CaptureGraphs
    | DropGraphs
    | Prefill
    | Decode
    | Feed
    | CopyPrefix
    | SetBlocks
    | SharePrefixes
)
Reply = Done | Failed


def encode(message: Call | Reply) -> bytes:
    """As it is sent over a channel."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


class ChannelError(Exception):
    """The other process cannot be reached any more: retryable on other processes."""


class ChannelClosed(ChannelError):
    """The other end is closed."""


class ChannelStalled(ChannelError):
    """The other end does not read. Part of a message may be sent, so the channel is of no use."""


class Channel:
    """One end of a socket pair. One thread may send while another receives."""

    def __init__(self, end: socket.socket, send_timeout: float) -> None:
        """`send_timeout`: seconds that `send` waits for room. Receiving waits for ever."""
        end.settimeout(send_timeout)
        self._end = end
        self._received = bytearray()
        self._calls = msgspec.msgpack.Decoder(Call)
        self._replies = msgspec.msgpack.Decoder(Reply)

    def send(self, encoded: bytes) -> None:
        """Raises ChannelError."""
        try:
            self._end.sendall(encoded)
        except TimeoutError as error:
            raise ChannelStalled from error
        except OSError as error:
            raise ChannelClosed from error

    def receive_call(self) -> Call:
        """The next one. Raises ChannelClosed."""
        return self._calls.decode(self._receive_message())

    def receive_reply(self) -> Reply:
        """The next one. Raises ChannelClosed."""
        return self._replies.decode(self._receive_message())

    def fileno(self) -> int:
        """For `poll`."""
        return self._end.fileno()

    def close(self) -> None:
        """Also wakes a thread that is receiving."""
        with contextlib.suppress(OSError):  # the other end was faster
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _receive_message(self) -> bytes:
        header = self._receive_exactly(_LENGTH.size)
        (length,) = _LENGTH.unpack(header)
        return self._receive_exactly(length)

    def _receive_exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            try:
                data = self._end.recv(_READ_BYTES)
            except TimeoutError:
                continue
            except OSError as error:
                raise ChannelClosed from error
            if not data:
                raise ChannelClosed
            self._received += data
        message = bytes(self._received[:count])
        del self._received[:count]
        return message
