"""The sign of life of a process that the launcher watches: a byte a second, from its event loop.

The launcher leaves the end of a pipe open in the process and names it in CANOPY_HEARTBEAT_FD. A
process that is stopped, or whose event loop no longer turns, falls silent; one that computes in
threads, or loads a model in one, does not. Without the variable nobody watches.
"""

import asyncio
import contextlib
import faulthandler
import os
import signal

HEARTBEAT_FD = "CANOPY_HEARTBEAT_FD"
HEARTBEAT_SECONDS = 1.0
WHERE_ARE_YOU = (
    signal.SIGUSR2
)  # a silent process gets it before its end: it logs every thread's stack


async def beat() -> None:
    """Signs until it is cancelled; returns at once if nobody watches."""
    number = os.environ.get(HEARTBEAT_FD, "")
    if not number.isdecimal():
        return
    pipe = int(number)
    os.set_blocking(pipe, False)
    faulthandler.register(WHERE_ARE_YOU)
    while True:
        try:
            # A full pipe belongs to a launcher that stands still: there are signs enough in it.
            with contextlib.suppress(BlockingIOError):
                os.write(pipe, b".")
        except OSError:  # the launcher is gone, and the kernel is about to end this process
            return
        await asyncio.sleep(HEARTBEAT_SECONDS)
