"""Server-sent events from bytes, as they arrive.

httpx's line iterator does not serve: it has no bound, and it splits at U+2028 and the like, which
JSON may contain.
"""

MAX_EVENT_BYTES = 1 << 20  # far above a token with all that a server may say about it


class BadStream(ValueError):
    """Bytes that cannot be an answer."""


class EventParser:
    """Collects bytes until events are complete. Comments only keep the connection alive."""

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._line = bytearray()  # not ended yet
        self._data: list[bytes] = []
        self._size = 0  # of `_data`, bytes

    def feed(self, received: bytes) -> list[bytes]:
        """The data of the events that end in `received`. Raises BadStream beyond the limit."""
        self._line += received
        events: list[bytes] = []
        if b"\n" in received or b"\r" in received:
            lines = bytes(self._line).splitlines(keepends=True)
            self._line = bytearray()
            # A final carriage return may be half of a line's end: the next bytes decide.
            if not lines[-1].endswith(b"\n"):
                self._line += lines.pop()
            for line in lines:
                self._parse_line(line.rstrip(b"\r\n"), events)
        self._check_limit(len(self._line))
        return events

    def end(self) -> list[bytes]:
        """The data of the last event, for a stream that ends without an empty line."""
        events: list[bytes] = []
        self._parse_line(bytes(self._line).rstrip(b"\r\n"), events)
        self._parse_line(b"", events)
        self._line.clear()
        return events

    def _parse_line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
            self._data, self._size = [], 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"error":  # a field of older llama.cpp servers
            name, value = b"data", b'{"error": ' + value + b"}"
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
            self._check_limit(0)

    def _check_limit(self, unfinished: int) -> None:
        if self._size + unfinished > self._limit:
            raise BadStream(f"an event of more than {self._limit} bytes")
