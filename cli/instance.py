"""The one instance of a CANOPY_HOME: its record for other commands, and what a killed one left behind."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from cli import lock
from cli.credentials import write_private
from cli.errors import CliError
from cli.home import Home

_LEFTOVER_SECONDS = 5.0


@dataclass(frozen=True)
class Recorded:
    """A process by pid *and* start time: a pid alone may have been given to a stranger meanwhile."""

    name: str
    pid: int
    started: float  # seconds since the machine's start; 0 for one that is gone
    state: str = "running"  # as its launcher sees it; else such as "restarting"

    @classmethod
    def of(cls, name: str, pid: int, state: str = "running") -> "Recorded":
        """The record of a process, also of one that is gone already."""
        try:
            return cls(name, pid, _began(psutil.Process(pid)), state)
        except psutil.NoSuchProcess:
            return cls(name, pid, 0.0, state)

    def process(self) -> psutil.Process | None:
        """The process itself if it still runs and is the one recorded."""
        try:
            process = psutil.Process(self.pid)
            # the latter is how older launchers recorded it
            same = (
                min(abs(_began(process) - self.started), abs(process.create_time() - self.started))
                < 0.1
            )
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def _began(process: psutil.Process) -> float:
    """When it began, in seconds since the machine did: those since the epoch move when the clock is set, and `down`
    would not know its own processes any more.
    """
    return process.create_time() - psutil.boot_time()


def read(home: Home) -> dict[str, Any] | None:
    """The record of a ready instance; None when none is ready."""
    try:
        record = json.loads(home.instance_file.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and lock.is_held(home) else None


def running(home: Home) -> dict[str, Any]:
    """The record of the running instance. Raises CliError when there is none."""
    record = read(home)
    if record is None:
        waiting = "It is still starting." if lock.is_held(home) else "Start it with ./canopy up"
        raise CliError(f"Canopy is not running here ({home.path}). {waiting}")
    return record


def record_processes(home: Home, processes: Iterable[Recorded]) -> None:
    """Remembers what runs, the launcher first, for `down` and for the start after a `kill -9`."""
    write_private(home.processes_file, json.dumps([asdict(each) for each in processes]))


def recorded_processes(home: Home) -> list[Recorded]:
    """What the last launcher started, whether it still runs or not."""
    try:
        return [Recorded(**each) for each in json.loads(home.processes_file.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def end_leftovers(home: Home) -> list[str]:
    """Ends what a killed launcher left; call with the lock held. Returns the names of what was still there."""
    left = [each for each in recorded_processes(home) if each.pid != os.getpid() and each.process()]
    end(left, within=_LEFTOVER_SECONDS)
    home.instance_file.unlink(missing_ok=True)
    home.processes_file.unlink(missing_ok=True)
    return [each.name for each in left]


def end(processes: list[Recorded], *, within: float) -> None:
    """Asks processes to end and kills, with their groups, those still there after `within` seconds."""
    for each in processes:
        _send(each, signal.SIGTERM, group=False)
    deadline = time.monotonic() + within
    for each in processes:
        if process := each.process():
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    for each in processes:
        _send(each, signal.SIGKILL, group=True)


def _send(recorded: Recorded, number: signal.Signals, *, group: bool) -> None:
    if recorded.process() is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group and os.getpgid(recorded.pid) == recorded.pid:
            os.killpg(recorded.pid, number)
        else:
            os.kill(recorded.pid, number)
