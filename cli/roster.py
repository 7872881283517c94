"""The running processes of an instance by name, with group and state, recorded at every change."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator

from cli import processes
from cli.errors import ProcessError, explain_os_error
from cli.home import Home
from cli.process import Child, Spec
from cli.processes import ProcessRecord

GROUPS = ("broker", "roots", "nodes", "api")
# Per group, below 10 s in all, as `down` and Ctrl-C promise. Nodes give running jobs 3 s.
STOP_SECONDS = {"api": 1.8, "nodes": 3.7, "roots": 0.8, "broker": 2.5}

RETRY_SECONDS = 2.0


class Roster:
    """The processes by name."""

    def __init__(self, home: Home, say: Callable[[str], None]) -> None:
        self._home = home
        self._launcher = ProcessRecord.of("launcher", os.getpid())
        self._say = say
        self._retry: asyncio.TimerHandle | None = None  # after a failed write
        self._children: dict[str, Child] = {}
        self._states: dict[str, str] = {}
        self._awaited: Counter[str] = Counter()
        self._groups: dict[str, list[str]] = {group: [] for group in GROUPS}
        self._publish: Callable[[], None] | None = None

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def __contains__(self, name: object) -> bool:
        return name in self._children

    def records(self) -> list[ProcessRecord]:
        """Every process, the launcher first."""
        records = [self._launcher]
        for name, child in self._children.items():
            records.append(ProcessRecord.of(name, child.pid, self._state(name)))
        return records

    async def spawn(self, group: str, spec: Spec) -> Child:
        """Starts a process; a restarted one keeps its state until marked. Raises ProcessError."""
        try:
            child = await Child.start(spec, self._home.logs)
        except OSError as error:
            raise ProcessError(f"{spec.name} cannot be started: {error}") from error
        self.add(group, spec.name, child, self._state(spec.name))
        return child

    def add(self, group: str, name: str, child: Child, state: str) -> None:
        """Adds a running process, in place of the former one of this name."""
        self._children[name] = child
        if name not in self._groups[group]:
            self._groups[group].append(name)
        self.mark(name, state)

    def mark(self, name: str, state: str) -> None:
        """Sets the state: `running`, `restarting`, `leaving` or `removed`."""
        self._states[name] = state
        self._changed()

    def forget(self, name: str) -> None:
        """Removes a process that has ended for good."""
        self._children.pop(name, None)
        self._states.pop(name, None)
        for members in self._groups.values():
            if name in members:
                members.remove(name)
        self._changed()

    @contextlib.contextmanager
    def starting(self, name: str) -> Iterator[None]:
        """Counts the process as awaited while the block runs; two of a name may start at once."""
        self._awaited[name] += 1
        try:
            yield
        finally:
            self._awaited[name] -= 1

    @property
    def awaited(self) -> list[str]:
        """The names of the processes that are starting."""
        return sorted(+self._awaited)

    def log(self, name: str) -> str:
        """The file with its output."""
        return str(self._home.logs / f"{name}.log")

    async def stop(self, group: str) -> None:
        """Ends a group within STOP_SECONDS; the broker before its port mapper, others together."""
        members = [self._children[name] for name in self._groups[group] if name in self._children]
        seconds = STOP_SECONDS[group]
        if group == "broker":
            for child in reversed(members):
                await child.stop(seconds)
            return
        await asyncio.gather(*(child.stop(seconds) for child in members))

    def kill(self) -> None:
        """Ends everything at once."""
        for child in self._children.values():
            child.kill()

    def publish_with(self, publish: Callable[[], None]) -> None:
        """Calls `publish` now and at every change; it may raise OSError."""
        self._publish = publish
        self._changed()

    def close(self) -> None:
        """Cancels a pending retry; the next change writes again."""
        if self._retry:
            self._retry.cancel()
            self._retry = None

    def _state(self, name: str) -> str:
        return self._states.get(name, "running")

    def _changed(self) -> None:
        """Records the processes for other commands. A full disk must not stop supervision, so a
        failed write is retried.
        """
        failed_before = self._retry is not None
        self.close()
        try:
            processes.write(self._home, self.records())
            if self._publish:
                self._publish()
        except OSError as error:
            if not failed_before:
                self._say(f"./canopy status is out of date for now: {explain_os_error(error)}")
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._changed)
