"""Which API process this is, and whether another one is still alive."""

import functools
import os
import socket

import psutil


@functools.cache
def identity() -> str:
    """Host, pid and start time: a name that no later process will have."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(psutil.Process())}"


def may_live(owner: str) -> bool:
    """False if the process of that identity is certainly dead; True for one on another host."""
    try:
        host, pid, started = owner.rsplit(":", 2)
        if host != socket.gethostname():
            return True
        process = psutil.Process(int(pid))
        # Processes of older versions have their creation time as it is.
        return int(started) in (_started(process), int(process.create_time()))
    except (ValueError, psutil.Error):
        return False


def _started(process: psutil.Process) -> int:
    """Its start in hundredths of a second since boot.

    Not since the epoch: that moves when the clock is set, and a living process would look dead.
    """
    return round(100 * (process.create_time() - psutil.boot_time()))
