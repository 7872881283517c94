"""A place in the line, in words."""

import math

import msgspec

from broker.wire import Waiting


def in_words(frame: Waiting) -> str:
    """Such as "number 12 in line, starts in about 30 s (every slot is busy)": as much of it as is known."""
    known = []
    if frame.position is not None:
        known.append(f"number {frame.position} in line")
    if frame.seconds is not None:
        known.append(f"starts in about {roughly(frame.seconds)}")
    return f"{', '.join(known)} ({frame.reason})" if known else frame.reason


def roughly(seconds: float) -> str:
    """A time with as many digits as an estimate deserves. The chat page rounds in the same way (lib/format.ts)."""
    if seconds < 9.5:
        return f"{max(1, _nearest(seconds))} s"
    if seconds < 57.5:
        return f"{5 * _nearest(seconds / 5)} s"
    if seconds < 59.5 * 60:
        return f"{_nearest(seconds / 60)} min"
    return f"{_nearest(seconds / 1800) / 2:g} h"


def aged(frame: Waiting, age: float) -> Waiting:
    """The frame as it is true so many seconds after it came."""
    if frame.seconds is None:
        return frame
    return msgspec.structs.replace(frame, seconds=max(0.0, frame.seconds - age))


def _nearest(number: float) -> int:
    return math.floor(number + 0.5)
