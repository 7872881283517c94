"""Steps of preparation: run what is needed, show that it moves, keep the output, fail in one line."""

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

from cli.errors import CliError

_REFRESH_SECONDS = 0.2  # on a terminal
_REPORT_SECONDS = 15.0  # in a log file
_SHIM = Path(__file__).resolve().parent.parent / "child.py"
_ERROR = re.compile(r"(ERROR|E|error|Error|npm error|\w+Error)\b[: ]")
_NO_SPACE = "No space left on device"


class Log:
    """The output of one step: a file, and its last line for the progress display."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.last = ""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(handle, "w", encoding="utf-8", errors="replace")

    def write(self, line: str) -> None:
        """Keeps one line."""
        self._file.write(line + "\n")
        self._file.flush()
        self.last = line.strip() or self.last

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        outlives_us: bool = False,
        umask: int = -1,
    ) -> list[str]:
        """Runs a program to its end and returns its lines. Raises CliError with the reason when it fails.

        It ends when we are killed, unless `outlives_us`: a package manager is better not cut short.
        `umask`: what its files are made with; -1: as ours.
        """
        self.write("$ " + " ".join(map(str, command)))
        shim = (
            []
            if outlives_us
            else [
                sys.executable,
                "-S",
                "-E",
                str(_SHIM),
                str(int(signal.SIGTERM)),
                str(os.getpid()),
            ]
        )
        lines = []
        with subprocess.Popen(
            [*shim, *map(str, command)],
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
            raise CliError(reason(lines) or f"{Path(command[0]).name} ended with status {status}")
        return lines


def reason(lines: Sequence[str]) -> str:
    """The line that says why a program failed: a full disk above all, else its last error, else its last line."""
    if any(_NO_SPACE in line for line in lines):
        return "the disk is full: free some space, then run the command again"
    told = [
        line.strip()
        for line in lines
        if line.strip() and not line.lstrip().startswith(("[notice]", "npm notice"))
    ]
    errors = [line for line in told if _ERROR.match(line)]
    return (errors or told or [""])[-1].removeprefix("error: ")


@dataclass
class Step:
    """One thing to prepare. `needed` is asked again under the lock: another command may have done it meanwhile."""

    name: str
    title: str
    needed: Callable[[], bool]
    work: Callable[[Log], None]
    started: float = 0.0
    log: Log | None = None
    error: CliError | None = None
    seconds: float = field(default=0.0, init=False)

    def run(self, logs: Path) -> None:
        """Does the work and keeps the failure for the caller's thread."""
        self.started = time.monotonic()
        try:
            self.log = Log(logs / f"prepare-{self.name}.log")
            self.work(self.log)
        except CliError as error:
            self.error = CliError(
                f"{self.title} failed: {error} (log: {self._log_path})", detail=error.detail
            )
        except OSError as error:
            self.error = CliError(f"{self.title} failed: {error}")
        finally:
            self.seconds = time.monotonic() - self.started
            if self.log:
                self.log.close()

    @property
    def _log_path(self) -> str:
        return str(self.log.path) if self.log else "none"


class Display:
    """Shows running steps on standard error: lines rewritten in place on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._drawn = 0
        self._reported = time.monotonic()

    @property
    def interval(self) -> float:
        """Seconds between two calls of `draw`."""
        return _REFRESH_SECONDS if self._live else 1.0

    def begin(self, step: Step) -> None:
        """A step starts."""
        if not self._live:
            _say(f"  ... {step.title}")

    def draw(self, running: Sequence[Step]) -> None:
        """Shows how far the running steps are."""
        if self._live:
            self._erase()
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            for step in running:
                _say(_progress(step)[: width - 1])
            self._drawn = len(running)
        elif time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._reported = time.monotonic()
            for step in running:
                _say(_progress(step)[:160])

    def end(self, step: Step) -> None:
        """A step ended, well or badly."""
        self._erase()
        if not step.error:
            _say(f"  ok  {step.title} ({step.seconds:.0f} s)")

    def _erase(self) -> None:
        if self._drawn:
            _write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0


def run_together(steps: Sequence[Step], logs: Path) -> None:
    """Runs the needed steps at the same time. Raises the first failure once all have ended."""
    needed = [step for step in steps if step.needed()]
    if not needed:
        return
    display = Display()
    running = {step.name: (step, _start(step, logs, display)) for step in needed}
    while running:
        for name, (step, thread) in list(running.items()):
            thread.join(display.interval / len(running))
            if not thread.is_alive():
                del running[name]
                display.end(step)
        display.draw([step for step, _ in running.values()])
    for step in needed:
        if step.error:
            raise step.error


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Lets one command prepare at a time. The kernel releases the lock when its holder dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("  ... waiting for another canopy command that prepares this folder")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _start(step: Step, logs: Path, display: Display) -> threading.Thread:
    display.begin(step)
    step.started = time.monotonic()
    # A daemon: Ctrl-C ends the command at once; the sub-program in the terminal's group gets it too.
    thread = threading.Thread(target=step.run, args=(logs,), daemon=True)
    thread.start()
    return thread


def _progress(step: Step) -> str:
    last = step.log.last if step.log else ""
    return f"  ... {step.title}: {time.monotonic() - step.started:.0f} s  {last}"


def _say(text: str) -> None:
    _write(text + "\n")


def _write(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: the work goes on
        sys.stderr.write(text)
        sys.stderr.flush()
