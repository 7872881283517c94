"""`down`: ends an instance from outside, whatever state it is in."""

import contextlib
import os
import signal
import time

import click

from cli import home as homes
from cli import lock, processes
from cli.errors import StateError
from cli.home import Home

_LAUNCHER_SECONDS = 12.0  # a little more than an orderly stop takes at most
_PROCESS_SECONDS = 2.0
_POLL_SECONDS = 0.05


@click.command()
def down() -> None:
    """Stop what `up` started, or is still starting."""
    home = homes.read()
    started = time.monotonic()
    recorded = processes.read(home)
    if _end_launchers(home):
        processes.end(recorded, within=_PROCESS_SECONDS)  # the launcher may have been killed
        print(f"stopped in {time.monotonic() - started:.1f} s")
        return
    leftovers = _end_leftovers(home)
    if leftovers:
        print(f"ended what a killed launcher left: {', '.join(leftovers)}")
    else:
        print("nothing runs here")


def _end_launchers(home: Home) -> bool:
    """Ends the holders of the lock until it is free; False if it was. Raises StateError.

    A launcher may pass the lock on while it starts; then the next holder gets the signal too.
    """
    signalled: set[lock.Holder] = set()
    deadline = time.monotonic() + _LAUNCHER_SECONDS
    while lock.is_held(home):
        holder = lock.holder(home)
        if holder and holder not in signalled:
            signalled.add(holder)
            deadline = time.monotonic() + _LAUNCHER_SECONDS
            _send(holder, signal.SIGTERM)
        if time.monotonic() > deadline:
            if holder is None:
                raise StateError(f"An unknown process holds {home.lock_file}.")
            _send(holder, signal.SIGKILL)
            deadline = time.monotonic() + _LAUNCHER_SECONDS
        time.sleep(_POLL_SECONDS)
    return bool(signalled)


def _send(holder: lock.Holder, number: signal.Signals) -> None:
    if holder.lives():
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder.pid, number)


def _end_leftovers(home: Home) -> list[str]:
    if not home.run.exists():
        return []
    with lock.hold(home):
        return processes.end_leftovers(home)
