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

import psutil

from cli.credentials import write_private
from cli.home import Home

_LEFTOVER_SECONDS = 5.0
_CLOCK_TICK = 0.1  # start times closer than this are the same


@dataclass(frozen=True)
class ProcessRecord:
    """A process by pid *and* start time, as the kernel reuses pids."""

    name: str
    pid: int
    started: float  # seconds since the machine's boot; 0 for a process that has ended
    state: str = "running"  # or `restarting`, `leaving`: as the launcher sees it

    @classmethod
    def of(cls, name: str, pid: int, state: str = "running") -> "ProcessRecord":
        """The record of a process, even of one that has ended."""
        try:
            return cls(name, pid, _seconds_after_boot(psutil.Process(pid)), state)
        except psutil.NoSuchProcess:
            return cls(name, pid, 0.0, state)

    def process(self) -> psutil.Process | None:
        """The running process, or None if it has ended."""
        try:
            process = psutil.Process(self.pid)
            if not self._is(process) or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except psutil.NoSuchProcess:
            return None
        return process

    def memory(self) -> int | None:
        """Resident bytes, or None if the process has ended."""
        try:
            process = self.process()
            return int(process.memory_info().rss) if process else None
        except psutil.Error:
            return None

    def _is(self, process: psutil.Process) -> bool:
        """Compares start times: after boot, or after the epoch as older launchers recorded them."""
        after_boot = abs(_seconds_after_boot(process) - self.started)
        after_epoch = abs(process.create_time() - self.started)
        return min(after_boot, after_epoch) < _CLOCK_TICK


def _seconds_after_boot(process: psutil.Process) -> float:
    """When the process started. Seconds since the epoch would change when the clock is set, and
    `down` would not recognise its own processes.
    """
    return process.create_time() - psutil.boot_time()


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
    leftovers = [record for record in read(home) if record.pid != os.getpid() and record.process()]
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
        process = record.process()
        if process:
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    for record in records:
        _send(record, signal.SIGKILL, group=True)


def _send(record: ProcessRecord, number: signal.Signals, *, group: bool) -> None:
    if record.process() is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group and os.getpgid(record.pid) == record.pid:
            os.killpg(record.pid, number)
        else:
            os.kill(record.pid, number)
