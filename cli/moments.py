"""Moments as people write them on the command line."""

import re
from datetime import UTC, datetime, timedelta

from cli.errors import UsageError

_SPAN = re.compile(r"([1-9]\d{0,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def parse(text: str, now: float) -> float:
    """Unix seconds of a span from now, or of a date or time (UTC). Raises UsageError."""
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            moment = datetime.fromtimestamp(now, UTC) + timedelta(**{_UNITS[span[2]]: int(span[1])})
        else:
            moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(f"--expires must be like 30d, 12h or 2027-01-31, not {text!r}.") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment.timestamp() <= now:
        raise UsageError(f"--expires: {text} has passed already.")
    return moment.timestamp()


def ago(seconds: float) -> str:
    """A span in its largest unit, rounded down."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
