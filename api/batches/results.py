"""What the lines of a batch said, on disk. Blocking.

Each owner of a batch appends to a file of its own (ContentStore.part), so an owner that was only
slow, and a line that is torn by a kill, spoil nobody else's. Of several results of one line the
first owner's counts: `merge` gives every line exactly one.
"""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from api.batches import lines
from api.requests.internal import Reply

Kind = Literal["output", "error"]
_LETTERS: dict[bytes, Kind] = {b"o": "output", b"e": "error"}
_OK = 200


@dataclass(frozen=True, slots=True)
class Result:
    """One line's result, as the line of an output or an error file."""

    number: int
    kind: Kind
    content: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a result is."""

    part: int
    offset: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What becomes of the lines without a result."""

    code: str
    message: str


@dataclass(slots=True)
class Counts:
    """How many lines have a result."""

    completed: int = 0
    failed: int = 0

    def add(self, kind: Kind) -> None:
        """One more."""
        if kind == "output":
            self.completed += 1
        else:
            self.failed += 1


def of_reply(line: lines.Line, reply: Reply) -> Result:
    """The endpoint's response to a line."""
    response = {
        "status_code": reply.status,
        "request_id": reply.request_id or "",
        "body": msgspec.Raw(reply.body),
    }
    kind: Kind = "output" if reply.status == _OK else "error"
    return Result(line.number, kind, _content(line.custom_id, response, None))


def of_unfinished(number: int, custom_id: str, reason: Unfinished) -> Result:
    """A line that was not executed."""
    error = {"code": reason.code, "message": reason.message}
    return Result(number, "error", _content(custom_id, None, error))


def _content(custom_id: str, response: Any, error: Any) -> bytes:
    document = {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(document)


class PartFile:
    """The results of one owner."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def open(self) -> None:
        """Makes the file, if it is not there."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._handle = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def write(self, result: Result) -> None:
        """Appends a result: a kill of this process does not lose it."""
        if self._handle is None:
            raise AssertionError("a result is written before its file is open")
        letter = result.kind[:1].encode()
        rest = memoryview(b"%d %b %b\n" % (result.number, letter, result.content))
        while rest:  # a write may be short
            rest = rest[os.write(self._handle, rest) :]

    def close(self) -> None:
        """No more results."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def index(parts: list[Path]) -> dict[int, Place]:
    """Where the result of each line is."""
    places: dict[int, Place] = {}
    for at, path in enumerate(parts):
        with path.open("rb") as file:
            for offset, raw in _whole_lines(file):
                number, letter, _ = raw.split(b" ", 2)
                places.setdefault(int(number), Place(at, offset, _LETTERS[letter]))
    return places


def _whole_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines and where they begin; without a last one that was torn."""
    offset = 0
    for raw in file:
        if raw.endswith(b"\n"):
            yield offset, raw
        offset += len(raw)


def count(places: dict[int, Place]) -> Counts:
    """Of the results that there are."""
    counts = Counts()
    for place in places.values():
        counts.add(place.kind)
    return counts


def merge(
    parts: list[Path], source: Path, output: BinaryIO, errors: BinaryIO, reason: Unfinished
) -> Counts:
    """Writes each line's one result, in the order of the lines."""
    places = index(parts)
    files = [path.open("rb") for path in parts]
    counts = Counts()
    try:
        with source.open("rb") as requests:
            for number, raw in lines.numbered(requests):
                place = places.get(number)
                if place is None:
                    result = of_unfinished(number, lines.custom_id(raw), reason)
                else:
                    content = _read(files[place.part], place)
                    result = Result(number, place.kind, content)
                (output if result.kind == "output" else errors).write(result.content + b"\n")
                counts.add(result.kind)
    finally:
        for file in files:
            file.close()
    for written in (output, errors):
        written.flush()
        os.fsync(written.fileno())
    return counts


def _read(file: BinaryIO, place: Place) -> bytes:
    file.seek(place.offset)
    return file.readline().split(b" ", 2)[2].rstrip(b"\n")
