"""Logging of the API process: one line an event, on standard error, at a bounded rate.

The supervisor stores the lines and rotates the files.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from broker.logs import LogSettings, add_trace, json_processors

AS_TEXT = LogSettings(as_json=False, level=logging.INFO)
LINES = 20  # of one kind in SECONDS
SECONDS = 60.0
_LONGEST = 300  # characters of a message that may repeat a client's text

Kind = tuple[str, str]


@dataclass(slots=True)
class _Window:
    began: float
    lines: int = 0


class RateLimit(logging.Filter):
    """Passes `lines` lines of a kind in `seconds`; the first of the next says how many it dropped.

    Anybody on the network can cause some lines, and one fault can repeat others for every request.
    A kind is an event of ours, or the line of code in a library that logs; not the message, which a
    client may choose.
    """

    def __init__(
        self,
        lines: int = LINES,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._most = lines
        self._seconds = seconds
        self._clock = clock
        self._windows: dict[Kind, _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by the handler, for every record."""
        if record.levelno <= logging.DEBUG:
            return True  # somebody asked for all of them
        kind, now = kind_of(record), self._clock()
        window = self._windows.get(kind)
        if window is None or now - window.began >= self._seconds:
            left_out = 0 if window is None else window.lines - self._most
            if left_out > 0:
                _note(record, f"{left_out} more of these were left out")
            window = self._windows[kind] = _Window(now)
        window.lines += 1
        if window.lines == self._most:
            _note(record, f"further ones are left out for {self._seconds:.0f} s")
        return window.lines <= self._most


def kind_of(record: logging.LogRecord) -> Kind:
    """What is counted together: as many kinds as there are places that log."""
    if isinstance(record.msg, dict):
        return record.name, str(record.msg.get("event", ""))[:_LONGEST]
    return record.name, f"{record.pathname}:{record.lineno}"


def _note(record: logging.LogRecord, text: str) -> None:
    if isinstance(record.msg, dict):
        record.msg["note"] = text
    else:
        record.msg, record.args = f"{record.getMessage()} ({text})", ()


def shorten(record: logging.LogRecord) -> bool:
    """A filter that passes all records, and shortens Django's about refused requests."""
    if record.name.startswith("django.security"):
        record.exc_info = record.exc_text = None
        record.msg, record.args = record.getMessage()[:_LONGEST], ()
    return True


def _renderers(settings: LogSettings, process: str) -> list[structlog.typing.Processor]:
    if settings.as_json:
        return json_processors(process)
    return [
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
    ]


def configure(settings: LogSettings = AS_TEXT, process: str = "api") -> None:
    """Sends structlog's and the standard library's records through one formatter."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_renderers(settings, process),
        ],
    )
    handler: logging.StreamHandler[Any] = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(shorten)
    handler.addFilter(RateLimit())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(settings.level)
    # A write that fails (a full disk, a closed standard error) must not log a traceback.
    logging.raiseExceptions = False
    # The answer to a refused request has the reason, and errors.py logs those that failed.
    for silent in ("django.request", "django.security.csrf"):
        logging.getLogger(silent).setLevel(logging.CRITICAL + 1)
    # Authlib's finer lines have what only the provider and we may know.
    logging.getLogger("authlib").setLevel(logging.INFO)
    logging.getLogger("pika").setLevel(logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
