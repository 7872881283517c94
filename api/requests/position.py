"""A job's queue position and estimated start, as text."""

import math

import msgspec

from broker.wire import Waiting


def describe(frame: Waiting) -> str:
    """Such as "number 12 in line, starts in about 30 s (every slot is busy)", as far as known."""
    parts = []
    if frame.position is not None:
        parts.append(f"number {frame.position} in line")
    if frame.seconds is not None:
        parts.append(f"starts in about {rounded(frame.seconds)}")
    if not parts:
        return frame.reason
    return f"{', '.join(parts)} ({frame.reason})"


def rounded(seconds: float) -> str:
    """A time as precise as an estimate can be. The chat page rounds alike (lib/format.ts)."""
    if seconds < 9.5:
        return f"{max(1, _nearest(seconds))} s"
    if seconds < 57.5:
        return f"{5 * _nearest(seconds / 5)} s"
    if seconds < 59.5 * 60:
        return f"{_nearest(seconds / 60)} min"
    return f"{_nearest(seconds / 1800) / 2:g} h"


def with_age(frame: Waiting, age: float) -> Waiting:
    """The frame with its estimate reduced by the time since it arrived."""
    if frame.seconds is None:
        return frame
    return msgspec.structs.replace(frame, seconds=max(0.0, frame.seconds - age))


def _nearest(number: float) -> int:
    return math.floor(number + 0.5)
