"""The launcher's output, written by a thread of its own so that no write can block supervision.

A paused terminal, an unread or closed pipe and a full disk delay or lose lines, nothing else.
Standard library only.
"""

import contextlib
import os
import queue
import sys
import threading
from pathlib import Path

from cli.logfile import LOG_BYTES

_LINES = 1000  # queued for a slow reader; more are dropped
_OUTPUT, _ERRORS = 1, 2  # file descriptors


def say(line: str) -> None:
    """Prints one line of progress on standard error, from a command that may wait for the write."""
    with contextlib.suppress(OSError):  # standard error may be closed
        print(f"  {line}", file=sys.stderr, flush=True)


class Console:
    """Writes to standard output and standard error in order, without blocking until `close`.

    `log`: the file to which a detached launcher redirects both; it is kept below a size. `as_json`:
    progress is written as JSON, in the shape of the other processes' logs.
    """

    def __init__(self, log: Path | None = None, *, as_json: bool = False) -> None:
        self._log = log
        self._as_json = as_json
        self._lines: queue.Queue[tuple[int, str] | None] = queue.Queue(_LINES)
        # A daemon, since it may hang in a write when the process ends.
        self._writer = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._writer.start()

    def say(self, line: str) -> None:
        """One line of progress, on standard error."""
        if self._as_json:
            self._put(_ERRORS, f"{_json_line(line)}\n")
        else:
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
        item = self._lines.get()
        while item is not None:
            fd, text = item
            with contextlib.suppress(OSError):  # a closed pipe or a full disk
                self._keep_bounded(fd)
                _write(fd, text.encode(errors="replace"))
            item = self._lines.get()

    def _keep_bounded(self, fd: int) -> None:
        """Copies a full log aside and truncates it, as its descriptors cannot be reopened."""
        if self._log is None or os.fstat(fd).st_size < LOG_BYTES:
            return
        import shutil  # here, as `status` needs none of its compression libraries

        with contextlib.suppress(OSError):
            shutil.copyfile(self._log, self._log.with_name(f"{self._log.name}.1"))
        os.ftruncate(fd, 0)


def is_kept(fd: int = _OUTPUT) -> bool:
    """Whether the output goes to a log: systemd's journal (systemd.exec(5)), or a container's.

    `container` is the variable by which programs know that they run in one; our image sets it.
    """
    if os.environ.get("container") and not os.isatty(fd):  # noqa: SIM112 - it is written so
        return True
    status = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def open_standard_streams() -> None:
    """Opens descriptors 0, 1 and 2 if they are closed.

    Otherwise the next opened file would get such a number, and the program's output with it.
    """
    for fd in (0, _OUTPUT, _ERRORS):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdout = sys.stdout or os.fdopen(_OUTPUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(_ERRORS, "w", closefd=False)


def _json_line(line: str) -> str:
    import json  # here, as most commands write none
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"timestamp": now, "level": "info", "event": line, "process": "launcher"})


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
