"""What a log line says: when, how serious, about which request. Pure.

Lines come from our own programs (fields, JSON, or for the console), RabbitMQ, and anything that a
library prints.
"""

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")

LONGEST_LINE = 4_000  # characters shown
_HEAD = 200  # characters in which the time and the level are looked for
_LONGEST_JSON = 100_000  # characters
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d(?:[.,]\d{1,6})?)\d*(Z|[+-]\d\d:\d\d)?")
_LEVEL = re.compile(
    r"""(?:level='|\[\s*|"level":\s*")(debug|info|notice|warning|warn|error|critical|alert|emergency)\b"""
)
# RabbitMQ says four lines about each connection, as information; each command makes some.
_ROUTINE = re.compile(
    r"\[info\] <[\d.]+> (?:(?:accepting|closing) AMQP connection|connection <[\d.]+> \()"
)
_LEVEL_NAMES: dict[str, Level] = {
    "debug": "debug",
    "info": "info",
    "notice": "info",
    "warning": "warning",
    "warn": "warning",
}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line. `at`: Unix seconds, None where nothing says it; a level is always assumed."""

    process: str
    at: float | None
    level: Level
    text: str

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"process": self.process, "at": self.at, "level": self.level, "text": self.text}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which lines are shown. `request`: a request id, or any other text in the line."""

    level: Level = "debug"
    request: str = ""

    def passes(self, line: LogLine) -> bool:
        """True for a line to show."""
        if self.request and self.request not in line.text:
            return False
        return LEVELS.index(line.level) >= LEVELS.index(self.level)


class LineParser:
    """Parses one process's lines in order.

    A traceback has the time and the level of the line that it follows.
    """

    def __init__(self, process: str) -> None:
        self._latest = LogLine(process, None, "info", "")

    def parse(self, raw: str) -> LogLine:
        """One line without its end."""
        text = _COLOURS.sub("", raw)
        moment, level = text[:_HEAD], text[:_HEAD]
        if text.startswith("{"):  # its time and level are the last of its fields
            moment, level = _json_fields(text)
        at = _moment(moment)
        line = replace(self._latest, text=_printable(text[:LONGEST_LINE]))
        if at is None:
            return line
        self._latest = replace(line, at=at, level=_level(level))
        return self._latest


def _json_fields(text: str) -> tuple[str, str]:
    """Where to look for the time and the level of a JSON line."""
    try:
        fields = json.loads(text[:_LONGEST_JSON])
    except (ValueError, RecursionError):
        return text[:_HEAD], text[:_HEAD]
    return str(fields.get("timestamp", ""))[:_HEAD], f"[{fields.get('level', '')}"[:_HEAD]


def _moment(head: str) -> float | None:
    match = _MOMENT.search(head)
    if match is None:
        return None
    day, clock, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock.replace(',', '.')}{zone or ''}")
        if moment.tzinfo is None:
            moment = moment.astimezone()  # our nodes print the machine's own time
        return moment.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def _level(head: str) -> Level:
    match = _LEVEL.search(head)
    if match is None:
        return "info"
    if _ROUTINE.search(head):
        return "debug"
    return _LEVEL_NAMES.get(match[1], "error")


def _printable(text: str) -> str:
    """Without control characters: most texts come from other machines and go to a terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\t" else " " for letter in text)


def encode(line: LogLine) -> str:
    """One line of JSON."""
    return json.dumps(line.document(), ensure_ascii=False)
