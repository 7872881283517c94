"""Records what a command does, by the API's program, which has the database.

with recorded("drain", name) as entry:
    ...
    entry.result = "done"

The entry is made before the command acts. Where the database cannot be written, as on a machine
that only reaches the broker, the command says so in one line and acts.
"""

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cli import home as homes
from cli.errors import CliError

BEGIN_SECONDS = 20.0  # for the program to start and to make the entry
END_SECONDS = 10.0
_LONGEST_RESULT = 300  # letters of a result


class Entry:
    """An action under way; `result`: how it ended."""

    def __init__(self, recorder: "subprocess.Popen[str]") -> None:
        self.result = "done"
        self._recorder = recorder

    def wait_for_beginning(self) -> None:
        """Returns when the entry is made, or has failed with one line on standard error."""
        output = self._recorder.stdout
        if output is None:
            return
        readable, _, _ = select.select([output], [], [], BEGIN_SECONDS)
        if not readable:
            self._give_up(f"no answer after {BEGIN_SECONDS:.0f} s")
        elif not output.readline():
            self._give_up(self._complaint())

    def end(self, result: str) -> None:
        """Stores the result."""
        line = " ".join(result.split())[:_LONGEST_RESULT]
        try:
            self._recorder.communicate(f"{line}\n", timeout=END_SECONDS)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self._end_recorder()
        if self._recorder.returncode != 0:
            _say("the result is not in the audit log: it stays there as begun")

    @property
    def runs(self) -> bool:
        """False once the entry has failed."""
        return self._recorder.poll() is None

    def _complaint(self) -> str:
        _, errors = self._recorder.communicate()
        lines = str(errors).strip().splitlines()
        return lines[-1] if lines else "the program that writes it ended"

    def _end_recorder(self) -> None:
        self._recorder.kill()
        with suppress(OSError, ValueError):  # its pipes may be closed already
            self._recorder.communicate()

    def _give_up(self, reason: str) -> None:
        self._end_recorder()
        _say(f"this is not recorded in the audit log: {reason}")


@contextmanager
def recorded(action: str, target: str, detail: str = "") -> Iterator[Entry]:
    """Records an action before it begins, and its result, or the CliError that ended it."""
    entry = Entry(_start(action, target, detail))
    entry.wait_for_beginning()
    try:
        yield entry
    except CliError as error:
        if entry.runs:
            entry.end(str(error))
        raise
    if entry.runs:
        entry.end(entry.result)


def _start(action: str, target: str, detail: str) -> "subprocess.Popen[str]":
    env = {**homes.module_environment(), "CANOPY_HOME": str(homes.read().path)}
    return subprocess.Popen(
        homes.module_command("api", "record", "--", action, target, detail),
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C ends the command; the entry then stays as begun
    )


def _say(line: str) -> None:
    print(f"canopy: {line}", file=sys.stderr, flush=True)
