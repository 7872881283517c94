"""`up --detach`: the launcher runs in the background; the command waits until it is ready or fails.

The launcher reports how its start went, as one JSON object on a pipe that the command reads.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys

from cli.console import say
from cli.errors import ProcessError
from cli.home import Home, module_command, module_environment
from cli.lock import LOCK_FD, Lock

_READY_FD = "CANOPY_READY_FD"  # the pipe's number in the launcher


def detach(home: Home, lock: Lock) -> None:
    """Runs this command again in the background, with the lock, and returns when it is ready.

    Raises ProcessError with the launcher's reason. Ending this command before that ends the other.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    process, pipe = _start(home, lock)
    try:
        say(f"starting in the background (pid {process.pid}, log: {home.launcher_log})")
        with os.fdopen(pipe) as stream:
            report = _parse(stream.read())
    except KeyboardInterrupt:
        process.terminate()
        raise
    if "ready" not in report:
        reason = report.get("error") or f"Canopy did not start (log: {home.launcher_log})"
        raise ProcessError(reason)
    print(report["ready"], flush=True)


def is_detached() -> bool:
    """Whether this process is a launcher that a command in the foreground waits for."""
    return _READY_FD in os.environ


def report_ready(line: str) -> None:
    """Gives the waiting command its last line, if there is such a command."""
    _report({"ready": line})


def report_failure(reason: str) -> None:
    """Gives the waiting command the reason of a failed start, if there is such a command."""
    _report({"error": reason})


def _report(report: dict[str, str]) -> None:
    number = os.environ.pop(_READY_FD, None)
    if number is not None:
        with contextlib.suppress(OSError), os.fdopen(int(number), "w") as pipe:
            json.dump(report, pipe)


def _parse(text: str) -> dict[str, str]:
    """The launcher's report; empty if it was killed, even halfway through writing it."""
    try:
        report: dict[str, str] = json.loads(text)
    except ValueError:
        return {}
    return report


def _start(home: Home, lock: Lock) -> tuple["subprocess.Popen[bytes]", int]:
    """The launcher, and the read end of the pipe for its report."""
    arguments = [word for word in sys.argv[1:] if word != "--detach"]
    read_end, write_end = os.pipe()
    env = {**module_environment(), _READY_FD: str(write_end), LOCK_FD: str(lock.fd)}
    log = os.open(home.launcher_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            module_command("cli", *arguments),
            env=env,
            pass_fds=[write_end, lock.fd],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
        os.close(write_end)
    return process, read_end


def _interrupt(*_signal: object) -> None:
    raise KeyboardInterrupt
