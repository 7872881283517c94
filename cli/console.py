"""What the launcher says: by a thread of its own, so that no output can stop the supervision.

A terminal that stands still, a pipe that nobody reads, a closed one or a full disk delays or loses
lines, and nothing else.
"""

import contextlib
import os
import queue
import shutil
import sys
import threading
from pathlib import Path

from cli.logfile import LOG_BYTES

_LINES = 1000  # that may wait for a reader; more are dropped
_OUTPUT, _ERRORS = 1, 2  # file descriptors


class Console:
    """Standard output and standard error, written in order, never waited for until `close`.

    `log`: the file that both are redirected to in a detached launcher, which is kept bounded.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self._lines: queue.Queue[tuple[int, str] | None] = queue.Queue(_LINES)
        # A daemon: at the end it may be stuck in a write that nobody reads.
        self._writer = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._writer.start()

    def say(self, line: str) -> None:
        """One line of progress, on standard error."""
        self._put(_ERRORS, f"  {line}\n")

    def result(self, line: str) -> None:
        """One line on standard output."""
        self._put(_OUTPUT, f"{line}\n")

    def close(self, within: float) -> None:
        """Waits until everything is written, for `within` seconds at most."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._writer.join(within)

    def _put(self, fd: int, text: str) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait((fd, text))

    def _write_all(self) -> None:
        while (item := self._lines.get()) is not None:
            fd, text = item
            with contextlib.suppress(OSError):  # nobody reads it, or the disk is full
                self._keep_bounded(fd)
                _write(fd, text.encode(errors="replace"))

    def _keep_bounded(self, fd: int) -> None:
        """Puts a full log aside by copying it: the file itself stays open under its numbers."""
        if self._log is None or os.fstat(fd).st_size < LOG_BYTES:
            return
        with contextlib.suppress(OSError):
            shutil.copyfile(self._log, self._log.with_name(f"{self._log.name}.1"))
        os.ftruncate(fd, 0)


def is_journal(fd: int = _OUTPUT) -> bool:
    """Whether the output goes to systemd's journal, which keeps what it gets (systemd.exec(5))."""
    found = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def open_standard_streams() -> None:
    """Fills 0, 1 and 2 where they are closed: a file opened later would get their numbers, and what
    is meant for the terminal would be written into it.
    """
    for fd in (0, _OUTPUT, _ERRORS):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or os.fdopen(_OUTPUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(_ERRORS, "w", closefd=False)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
