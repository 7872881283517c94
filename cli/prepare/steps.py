"""Steps of preparation: run side by side, with progress, a log each, and one line on failure."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cli.console import say
from cli.errors import CliError, ProcessError

_REFRESH_SECONDS = 0.2  # on a terminal
_REPORT_SECONDS = 15.0  # in a log file
_SHIM = Path(__file__).resolve().parent.parent / "child.py"
_ERROR = re.compile(r"(ERROR|E|error|Error|npm error|\w+Error)\b[: ]")
_NO_SPACE = "No space left on device"
_NOTICES = ("[notice]", "npm notice")


class Log:
    """A step's output: a file, and `last`, its last line, for the progress display."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.last = ""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(handle, "w", encoding="utf-8", errors="replace")

    def write(self, line: str) -> None:
        """Appends one line."""
        self._file.write(line + "\n")
        self._file.flush()
        self.last = line.strip() or self.last

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        survives_us: bool = False,
        umask: int = -1,
    ) -> list[str]:
        """Runs a program and returns its lines. Raises ProcessError with the reason of a failure.

        It ends when we are killed, unless it `survives_us`, as a package manager should not be
        interrupted. `umask`: its own; -1 for ours.
        """
        words = [str(word) for word in command]
        self.write("$ " + " ".join(words))
        if not survives_us:
            death_signal = str(int(signal.SIGTERM))
            words = [sys.executable, "-S", "-E", str(_SHIM), death_signal, str(os.getpid()), *words]
        lines = []
        with subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            umask=umask,
        ) as process:
            for line in process.stdout or ():
                lines.append(line.rstrip("\n"))
                self.write(lines[-1])
        status = process.returncode
        if status != 0:
            fallback = f"{Path(command[0]).name} ended with status {status}"
            raise ProcessError(failure_reason(lines) or fallback)
        return lines


def failure_reason(lines: Sequence[str]) -> str:
    """Why a program failed: a full disk, else its last error line, else its last line."""
    if any(_NO_SPACE in line for line in lines):
        return "the disk is full: free some space, then run the command again"
    last, last_error = "", ""
    for line in map(str.strip, lines):
        if not line or line.startswith(_NOTICES):
            continue
        last = line
        if _ERROR.match(line):
            last_error = line
    return (last_error or last).removeprefix("error: ")


@dataclass
class Step:
    """One thing to prepare. `needed`: False if that was done, perhaps by another command."""

    name: str
    title: str
    needed: Callable[[], bool]
    work: Callable[[Log], None]
    started: float = 0.0
    log: Log | None = None
    error: CliError | None = None
    seconds: float = field(default=0.0, init=False)

    def run(self, logs: Path) -> None:
        """Does the work; keeps a failure in `error` for the caller's thread."""
        self.started = time.monotonic()
        try:
            self.log = Log(logs / f"prepare-{self.name}.log")
            self.work(self.log)
        except CliError as error:
            message = f"{self.title} failed: {error} (log: {self._log_path})"
            self.error = ProcessError(message, detail=error.detail)
        except OSError as error:
            self.error = ProcessError(f"{self.title} failed: {error}")
        finally:
            self.seconds = time.monotonic() - self.started
            if self.log:
                self.log.close()

    @property
    def _log_path(self) -> str:
        if self.log is None:
            return "none"
        return str(self.log.path)


class Display:
    """Shows running steps on standard error; on a terminal it rewrites its lines in place."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._drawn = 0
        self._reported = time.monotonic()

    @property
    def interval(self) -> float:
        """Seconds between two calls of `draw`."""
        if self._live:
            return _REFRESH_SECONDS
        return 1.0

    def begin(self, step: Step) -> None:
        """Announces a step."""
        if not self._live:
            say(f"... {step.title}")

    def draw(self, running: Sequence[Step]) -> None:
        """Shows the progress of the running steps."""
        if self._live:
            self._erase()
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            for step in running:
                say(_progress(step)[: width - 3])
            self._drawn = len(running)
        elif time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._reported = time.monotonic()
            for step in running:
                say(_progress(step)[:160])

    def end(self, step: Step) -> None:
        """Confirms a step that succeeded; the caller reports failures."""
        self._erase()
        if not step.error:
            say(f"ok  {step.title} ({step.seconds:.0f} s)")

    def _erase(self) -> None:
        if self._drawn:
            with contextlib.suppress(OSError):  # standard error may be closed
                sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0


def run_together(steps: Sequence[Step], logs: Path) -> None:
    """Runs the needed steps at the same time. Raises the first failure after all have ended."""
    needed = [step for step in steps if step.needed()]
    if not needed:
        return
    display = Display()
    threads: dict[str, threading.Thread] = {}
    for step in needed:
        threads[step.name] = _start(step, logs, display)
    running = list(needed)
    while running:
        for step in list(running):
            thread = threads[step.name]
            thread.join(display.interval / len(running))
            if not thread.is_alive():
                running.remove(step)
                display.end(step)
        display.draw(running)
    for step in needed:
        if step.error:
            raise step.error


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Lets one command prepare at a time; the kernel frees the lock when its holder dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("... waiting for another canopy command that prepares this folder")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _start(step: Step, logs: Path, display: Display) -> threading.Thread:
    display.begin(step)
    step.started = time.monotonic()
    # A daemon, so that Ctrl-C ends the command at once; the step's program gets the signal too.
    thread = threading.Thread(target=step.run, args=(logs,), daemon=True)
    thread.start()
    return thread


def _progress(step: Step) -> str:
    text = f"... {step.title}: {time.monotonic() - step.started:.0f} s  "
    if step.log is not None:
        text += step.log.last
    return text
