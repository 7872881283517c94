"""The lines of a batch's input file: read in pieces, checked one by one. Blocking.

A line is `{"custom_id": "…", "method": "POST", "url": "/v1/…", "body": {…}}`.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from api.storage.text import storable

MOST_LINES = 50_000
LONGEST_LINE = 1_100_000  # bytes: a body of the largest size and what is around it
LONGEST_ID = 512
MOST_ERRORS = 20  # that a failed batch reports
READ_LINES, READ_BYTES = 64, 4_000_000  # of one read


class BadLine(Exception):
    """A line that cannot be used. `code`: OpenAI's, where it has one."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch. `number`: of its line in the file, from 1."""

    number: int
    custom_id: str
    body: bytes
    model: str


@dataclass(slots=True)
class Report:
    """What the check of a whole file found."""

    total: int = 0
    model: str = ""
    errors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, error: BadLine, number: int | None) -> None:
        """Notes an error, if there is room for it."""
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(
                {
                    "code": error.code,
                    "message": error.message,
                    "param": error.param,
                    "line": number,
                }
            )


def numbered(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, each cut after LONGEST_LINE bytes."""
    number = 0
    while raw := file.readline(LONGEST_LINE + 1):
        number += 1
        while len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
            if not rest or rest.endswith(b"\n"):
                break
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if raw.strip():
            yield number, raw


def some(lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The next few lines; none at the end."""
    taken: list[tuple[int, bytes]] = []
    size = 0
    for number, raw in islice(lines, READ_LINES):
        taken.append((number, raw))
        size += len(raw)
        if size > READ_BYTES:
            break
    return taken


def parse(number: int, raw: bytes, endpoint: str) -> Line:
    """One line as a request. Raises BadLine."""
    if len(raw) > LONGEST_LINE:
        raise BadLine("line_too_long", f"This line has more than {LONGEST_LINE} bytes.")
    try:
        line = msgspec.json.decode(raw, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        code = "invalid_request" if isinstance(error, msgspec.ValidationError) else "invalid_json"
        raise BadLine(code, f"This line is not parseable as a request: {error}") from error
    if not 0 < len(line.custom_id) <= LONGEST_ID:
        message = f"custom_id must have 1 to {LONGEST_ID} characters."
        raise BadLine("invalid_custom_id", message, "custom_id")
    if line.method != "POST":
        raise BadLine("invalid_method", "The method must be POST.", "method")
    if line.url != endpoint:
        raise BadLine("mismatched_url", f"The url must be the batch's, {endpoint}.", "url")
    return Line(number, line.custom_id, _without_stream(line.body), _model(line.body))


def custom_id(raw: bytes) -> str:
    """The id of a line that was checked before."""
    return msgspec.json.decode(raw, type=_Line).custom_id


def check(path: Path, endpoint: str) -> Report:
    """Checks a whole file; bodies are checked by the endpoint, when their turn comes."""
    report = Report()
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, raw in numbered(file):
            report.total += 1
            if report.total > MOST_LINES:
                message = f"A batch has at most {MOST_LINES} lines: split the file."
                report.add(BadLine("too_many_tasks", message), None)
                break
            try:
                line = parse(number, raw, endpoint)
                if line.custom_id in seen:
                    message = f"The custom_id {line.custom_id!r} is used before."
                    raise BadLine("duplicate_custom_id", message, "custom_id")
            except BadLine as error:
                report.add(error, number)
                continue
            seen.add(line.custom_id)
            report.model = report.model or storable(line.model)[:255]
    if not report.total:
        report.add(BadLine("empty_file", "The file has no lines."), None)
    return report


def _without_stream(body: dict[str, Any]) -> bytes:
    """Nobody reads a stream here: the whole answer is stored, when it is there."""
    kept = {name: value for name, value in body.items() if name not in _STREAM}
    return msgspec.json.encode(kept)


_STREAM = ("stream", "stream_options", "background")


def _model(body: dict[str, Any]) -> str:
    model = body.get("model")
    return model if isinstance(model, str) else ""
