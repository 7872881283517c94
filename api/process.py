"""Which API process this is, and whether another one still lives."""

import functools
import os
import socket

import psutil


@functools.cache
def identity() -> str:
    """Host, pid and start time: a name that no later process will have."""
    return f"{socket.gethostname()}:{os.getpid()}:{int(psutil.Process().create_time())}"


def may_live(owner: str) -> bool:
    """False if the process of that identity is certainly dead. A process on another host may live."""
    try:
        host, pid, started = owner.rsplit(":", 2)
        return host != socket.gethostname() or int(psutil.Process(int(pid)).create_time()) == int(started)
    except (ValueError, psutil.Error):
        return False
