"""The processes of an instance, recorded as they start: for `status`, for `down`, and for the start
after a `kill -9`, which ends what was left.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cli import procfs
from cli.home import Home
from cli.private_files import write_private

if TYPE_CHECKING:
    import psutil

_LEFTOVER_SECONDS = 5.0
_POLL_SECONDS = 0.02
_CLOCK_TICK = 0.1  # start times closer than this are the same


@dataclass(frozen=True)
class ProcessRecord:
    """A process by pid *and* start time, as the kernel reuses pids."""

    name: str
    pid: int
    # Seconds since the machine's boot; 0 for a process that has ended. Seconds since the epoch
    # would change when the clock is set, and `down` would not recognise its own processes.
    started: float
    state: str = "running"  # or `restarting`, `leaving`, `removed`: as the launcher sees it

    @classmethod
    def of(cls, name: str, pid: int, state: str = "running") -> "ProcessRecord":
        """The record of a process, even of one that has ended."""
        return cls(name, pid, procfs.started(pid) or 0.0, state)

    def runs(self) -> bool:
        """Whether this very process still runs."""
        started = procfs.started(self.pid)
        return started is not None and abs(started - self.started) < _CLOCK_TICK

    def process(self) -> "psutil.Process | None":
        """The running process, or None if it has ended."""
        import psutil  # here, as `status` needs none of it

        try:
            process = psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            return None
        if not self.runs():
            return None
        return process

    def memory(self) -> int | None:
        """Resident bytes, or None if the process has ended."""
        if not self.runs():
            return None
        return procfs.resident_bytes(self.pid)


def write(home: Home, records: Iterable[ProcessRecord]) -> None:
    """Replaces the records; the launcher's comes first. Raises OSError."""
    write_private(home.processes_file, json.dumps([asdict(record) for record in records]))


def read(home: Home) -> list[ProcessRecord]:
    """What the last launcher started, running or not."""
    try:
        return [ProcessRecord(**fields) for fields in json.loads(home.processes_file.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def end_leftovers(home: Home) -> list[str]:
    """Ends what a killed launcher left, and returns its names; call with the lock held."""
    leftovers: list[ProcessRecord] = []
    for record in read(home):
        if record.pid != os.getpid() and record.runs():
            leftovers.append(record)
    end(leftovers, within=_LEFTOVER_SECONDS)
    home.instance_file.unlink(missing_ok=True)
    home.processes_file.unlink(missing_ok=True)
    return [record.name for record in leftovers]


def end(records: list[ProcessRecord], *, within: float) -> None:
    """Asks processes to end; kills those still there after `within` seconds, with their groups."""
    for record in records:
        _send(record, signal.SIGTERM, group=False)
    deadline = time.monotonic() + within
    for record in records:
        while record.runs() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    for record in records:
        _send(record, signal.SIGKILL, group=True)


def _send(record: ProcessRecord, number: signal.Signals, *, group: bool) -> None:
    if not record.runs():
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group and os.getpgid(record.pid) == record.pid:
            os.killpg(record.pid, number)
        else:
            os.kill(record.pid, number)
