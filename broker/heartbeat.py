"""The heartbeat of a process that the launcher watches: a byte a second, from its event loop.

The launcher leaves one end of a pipe open in the process and names it in CANOPY_HEARTBEAT_FD. A
process that is stopped, or whose event loop hangs, falls silent; one that computes or loads a model
in threads does not. Without the variable nobody watches.
"""

import asyncio
import contextlib
import faulthandler
import os
import signal

HEARTBEAT_FD = "CANOPY_HEARTBEAT_FD"
HEARTBEAT_SECONDS = 1.0
# A silent process gets this before it is killed: it logs the stack of every thread.
STACK_DUMP_SIGNAL = signal.SIGUSR2


async def send_heartbeats() -> None:
    """Sends heartbeats until it is cancelled; returns at once if nobody watches."""
    number = os.environ.get(HEARTBEAT_FD, "")
    if not number.isdecimal():
        return
    pipe = int(number)
    os.set_blocking(pipe, False)
    faulthandler.register(STACK_DUMP_SIGNAL)
    while True:
        try:
            # A full pipe: the launcher is stopped, and has heartbeats enough to read.
            with contextlib.suppress(BlockingIOError):
                os.write(pipe, b".")
        except OSError:  # the launcher is gone, and this process is about to be ended
            return
        await asyncio.sleep(HEARTBEAT_SECONDS)
