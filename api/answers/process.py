"""Which API process this is, and whether another one still lives."""

import functools
import os
import socket

import psutil


@functools.cache
def identity() -> str:
    """Host, pid and start time: a name that no later process will have."""
    return f"{socket.gethostname()}:{os.getpid()}:{_began(psutil.Process())}"


def may_live(owner: str) -> bool:
    """False if the process of that identity is certainly dead. A process on another host may live."""
    try:
        host, pid, started = owner.rsplit(":", 2)
        if host != socket.gethostname():
            return True
        process = psutil.Process(int(pid))
        # the latter is how older processes named themselves
        return int(started) in (_began(process), int(process.create_time()))
    except (ValueError, psutil.Error):
        return False


def _began(process: psutil.Process) -> int:
    """When it began, in hundredths of a second since the machine did: seconds since the epoch move when the clock is
    set, and a living process would be taken for a dead one.
    """
    return round(100 * (process.create_time() - psutil.boot_time()))
