"""How every process writes its log: as lines for people, or with CANOPY_LOG_FORMAT=json as JSON.

A line about a job has its `request_id`, and the `trace_id` while it is traced.
"""

import io
import logging
import logging.handlers
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import structlog

from broker import tracing

FORMATS = ("text", "json")
LOG_BYTES = 10_000_000  # of one file
OLDER_FILES = 2
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}

Event = MutableMapping[str, Any]


class LogSettings(NamedTuple):
    """`level`: of logging; lines below it are not written."""

    as_json: bool
    level: int


def read(environ: Mapping[str, str]) -> LogSettings:
    """The settings in the environment. Raises ValueError, whose text names the variable."""
    format_name = environ.get("CANOPY_LOG_FORMAT") or "text"
    if format_name not in FORMATS:
        raise ValueError(f"CANOPY_LOG_FORMAT must be text or json, not {format_name[:50]!r}")
    level = environ.get("CANOPY_LOG_LEVEL") or "info"
    if level not in LEVELS:
        raise ValueError(f"CANOPY_LOG_LEVEL must be one of {', '.join(LEVELS)}, not {level[:50]!r}")
    return LogSettings(format_name == "json", LEVELS[level])


def json_processors(process: str) -> list[structlog.typing.Processor]:
    """From an event to a line of JSON. `process`: whose log this is."""

    def order(logger: Any, method: str, event: Event) -> Event:
        """The fields that every line has come first, where they are found even in a long one."""
        first = {"timestamp": event.pop("timestamp", None), "level": event.pop("level", None)}
        return {**first, "event": event.pop("event", ""), "process": process, **event}

    return [
        order,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]


def add_trace(logger: Any, method: str, event: Event) -> Event:
    """Adds the id of the trace in which the current task works."""
    traceparent = tracing.current.get()
    if traceparent:
        event.setdefault("trace_id", tracing.trace_id(traceparent))
    return event


class _Both(io.TextIOBase):
    """Writes to a stream and to a file that stays below a size, without a terminal's colours."""

    def __init__(self, stream: TextIO, file: Path) -> None:
        self._stream = stream
        self._handler = _LogFile(file, maxBytes=LOG_BYTES, backupCount=OLDER_FILES, delay=True)
        self._line = ""

    def write(self, text: str) -> int:
        self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            message = _COLOURS.sub("", line)
            self._handler.handle(logging.makeLogRecord({"msg": message}))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self._handler.close()
        super().close()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a variable in the stubs
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class _LogFile(logging.handlers.RotatingFileHandler):
    """Only its owner can read it. What cannot be written is dropped: a full disk stops no node."""

    def _open(self) -> Any:
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(handle, "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        """Fate of a line that cannot be written: it is on standard error alone."""


def configure_node(settings: LogSettings, name: str, file: Path | None = None) -> None:
    """A node's log, on standard error, and all that is written there in `file` too.

    Tracebacks come without the values of variables, which are users' texts.
    """
    if file is not None:
        sys.stderr = _Both(sys.stderr, file)
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
        structlog.dev.set_exc_info,
        add_trace,
    ]
    if settings.as_json:
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        processors += json_processors(name)
    else:
        processors.append(structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False))
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        )
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
