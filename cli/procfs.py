"""Processes as the kernel describes them in /proc, without psutil, whose import takes as long as
the rest of `status`. Standard library only.
"""

import os
from pathlib import Path

_START_TICKS = 19  # fields of `stat` behind the program's name; see proc(5)
_ENDED = ("Z", "X")  # zombie, dead


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the program's name before it may hold spaces
    if fields[0] in _ENDED:
        return None
    return int(fields[_START_TICKS])


def started(pid: int) -> float | None:
    """When the process started, in seconds since boot; None if it has ended."""
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int | None:
    """The memory that the process occupies; None if it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
