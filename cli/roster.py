"""Which processes of an instance there are, in which groups and states; written down at every change."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from cli import instance
from cli.errors import CliError
from cli.home import Home
from cli.instance import Recorded
from cli.process import Child, Spec

GROUPS = ("broker", "roots", "nodes", "api")
# For each to end, together below the 10 s in which `down` and Ctrl-C are promised to end. Nodes give running jobs 3 s.
STOP_SECONDS = {"api": 1.8, "nodes": 3.7, "roots": 0.8, "broker": 2.5}


class Roster:
    """The processes by name."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._children: dict[str, Child] = {}
        self._states: dict[str, str] = {}
        self._groups: dict[str, list[str]] = {group: [] for group in GROUPS}
        self.on_change: Callable[[], None] = lambda: None

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def recorded(self) -> list[Recorded]:
        """Every process, the launcher first."""
        pids = [("launcher", os.getpid()), *((name, child.pid) for name, child in self._children.items())]
        return [Recorded.of(name, pid, self._states.get(name, "running")) for name, pid in pids]

    async def spawn(self, group: str, spec: Spec) -> Child:
        """Starts a process. It keeps the state that its name has. Raises CliError."""
        try:
            child = await Child.start(spec, self._home.logs)
        except OSError as error:
            raise CliError(f"{spec.name} cannot be started: {error}") from error
        self.add(group, spec.name, child, self._states.get(spec.name, "running"))
        return child

    def add(self, group: str, name: str, child: Child, state: str) -> None:
        """Takes a running process in, in the place of the one that had this name."""
        self._children[name] = child
        if name not in self._groups[group]:
            self._groups[group].append(name)
        self.mark(name, state)

    def mark(self, name: str, state: str) -> None:
        """Says what the process is doing: `running`, `restarting`, `leaving`."""
        self._states[name] = state
        self._changed()

    def forget(self, name: str) -> None:
        """The process has ended, and is not to come again."""
        self._children.pop(name, None)
        self._states.pop(name, None)
        self._changed()

    def log(self, name: str) -> str:
        """Where its output is kept."""
        return str(self._home.logs / f"{name}.log")

    async def stop(self, group: str) -> None:
        """Ends a group within STOP_SECONDS; the broker's members one by one, the port mapper, started first, last."""
        members = [self._children[name] for name in self._groups[group] if name in self._children]
        if group == "broker":
            for child in reversed(members):
                await child.stop(STOP_SECONDS[group])
        else:
            await asyncio.gather(*(child.stop(STOP_SECONDS[group]) for child in members))

    def kill(self) -> None:
        """Ends everything at once."""
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)

    def _changed(self) -> None:
        instance.record_processes(self._home, self.recorded())
        self.on_change()
