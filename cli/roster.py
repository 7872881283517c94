"""Which processes of an instance there are, in which groups and states; written down at every change."""

import asyncio
import os
from collections.abc import Callable

from cli import instance
from cli.errors import CliError, explain_os_error
from cli.home import Home
from cli.instance import Recorded
from cli.process import Child, Spec

GROUPS = ("broker", "roots", "nodes", "api")
# For each to end, together below the 10 s in which `down` and Ctrl-C are promised to end. Nodes give running jobs 3 s.
STOP_SECONDS = {"api": 1.8, "nodes": 3.7, "roots": 0.8, "broker": 2.5}

RETRY_SECONDS = 2.0


class Roster:
    """The processes by name."""

    def __init__(self, home: Home, say: Callable[[str], None]) -> None:
        self._home = home
        self._launcher = Recorded.of("launcher", os.getpid())
        self._say = say
        self._retry: asyncio.TimerHandle | None = None  # of a record that could not be written
        self._children: dict[str, Child] = {}
        self._states: dict[str, str] = {}
        self._groups: dict[str, list[str]] = {group: [] for group in GROUPS}
        self._publish: Callable[[], None] | None = None

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def recorded(self) -> list[Recorded]:
        """Every process, the launcher first."""
        found = [self._launcher]
        for name, child in self._children.items():
            found.append(Recorded.of(name, child.pid, self._states.get(name, "running")))
        return found

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
            child.kill()

    def publish_with(self, publish: Callable[[], None]) -> None:
        """Calls `publish` now and at every change; it may raise OSError."""
        self._publish = publish
        self._changed()

    def close(self) -> None:
        """Writes nothing any more, until something changes."""
        if self._retry:
            self._retry.cancel()
            self._retry = None

    def _changed(self) -> None:
        """Writes down what runs, for other commands. A full disk must not keep us from restarting
        what has ended: then it is tried until it works.
        """
        failed_before = self._retry is not None
        self.close()
        try:
            instance.record_processes(self._home, self.recorded())
            if self._publish:
                self._publish()
        except OSError as error:
            if not failed_before:
                self._say(f"./canopy status shows an old state for now: {explain_os_error(error)}")
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._changed)
