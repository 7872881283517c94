"""Server-sent events out of bytes, as they come.

httpx's own lines will not do: they have no bound, and they are cut at U+2028 and the like, which JSON may hold.
"""

MAX_EVENT_BYTES = 1 << 20  # a token with everything a server may say of it is far below


class BadStream(ValueError):
    """Bytes that cannot be an answer; the text says why."""


class Events:
    """Collects bytes; tells the data of each event that is complete. Comments keep a connection alive, no more."""

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._line = bytearray()  # the one that has no end yet
        self._data: list[bytes] = []
        self._size = 0  # of `_data`, bytes

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that end in `piece`. Raises BadStream for one beyond the limit."""
        self._line += piece
        found: list[bytes] = []
        if b"\n" in piece or b"\r" in piece:
            lines = bytes(self._line).splitlines(keepends=True)
            # A carriage return at the very end may be half of a line's end: the next piece tells.
            rest = lines.pop() if not lines[-1].endswith(b"\n") else b""
            self._line = bytearray(rest)
            for line in lines:
                self._take(line.rstrip(b"\r\n"), found)
        self._bound(len(self._line))
        return found

    def end(self) -> list[bytes]:
        """The data of the last event, if the stream ends without the empty line behind it."""
        found: list[bytes] = []
        self._take(bytes(self._line).rstrip(b"\r\n"), found)
        self._take(b"", found)
        self._line.clear()
        return found

    def _take(self, line: bytes, found: list[bytes]) -> None:
        if not line:
            if self._data:
                found.append(b"\n".join(self._data))
            self._data, self._size = [], 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"error":  # older llama.cpp servers say it so
            name, value = b"data", b'{"error": ' + value + b"}"
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
            self._bound(0)

    def _bound(self, unfinished: int) -> None:
        if self._size + unfinished > self._limit:
            raise BadStream(f"an event of more than {self._limit} bytes")
