"""A child process: its start, output, signs of life and end."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.heartbeat import HEARTBEAT_FD
from cli.home import REPOSITORY
from cli.logfile import LogFile

_TAIL_LINES = 12
_LINE_BYTES = 65_536  # of a line without an end; the log has all of it
_SHIM = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Spec:
    """What to run. `at_death_of_launcher`: the signal it gets when the launcher is killed."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    is_ready: Callable[[str], bool] | None = None  # recognises a line of output
    at_death_of_launcher: signal.Signals = signal.SIGKILL
    cwd: Path = REPOSITORY
    secret: bool = False  # its output goes into no log
    inherits: Sequence[int] = ()  # descriptors that it gets under the same numbers
    beats: bool = False  # gives signs of life (broker/heartbeat.py)


class Child:
    """A running process with its log.

    It leads its own process group: Ctrl-C reaches only the launcher, which ends everything in
    order, and `kill` reaches grandchildren too.
    """

    def __init__(
        self, spec: Spec, process: asyncio.subprocess.Process, log: LogFile | None
    ) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.last_sign: float | None = None  # of life, by time.monotonic()
        self._process = process
        self._log = log
        self._reader = asyncio.create_task(self._keep_output(), name=f"output of {spec.name}")
        self._signs: int | None = None  # read end of the pipe for signs of life

    @classmethod
    async def start(cls, spec: Spec, logs: Path) -> "Child":
        """Starts the process. Raises OSError."""
        log: LogFile | None = None
        if not spec.secret:
            log = LogFile(logs / f"{spec.name}.log")
        if not spec.beats:
            return cls(spec, await _spawn(spec, {}, spec.inherits), log)
        read_end, write_end = os.pipe()
        try:
            env = {HEARTBEAT_FD: str(write_end)}
            child = cls(spec, await _spawn(spec, env, (*spec.inherits, write_end)), log)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        child._watch(read_end)
        return child

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """None while it runs, then its exit status, negative for a signal."""
        return self._process.returncode

    async def ended(self) -> int:
        """Waits for the end and the last output; returns the exit status."""
        status = await self._process.wait()
        # A grandchild may keep the pipe open longer than its parent lives.
        await asyncio.wait([self._reader], timeout=0.5)
        if self._reader.done() and not self._reader.cancelled():
            self._reader.result()  # raises an error of our own
        return status

    async def until_ready(self) -> bool:
        """Waits until its output says that it is ready (True) or it ends (False)."""
        return await self.until(self.ready.wait())

    async def until(self, condition: Coroutine[Any, Any, object]) -> bool:
        """Waits for the condition (True); False if the process ends first or on a TimeoutError."""
        waiting = asyncio.create_task(condition)
        ending = asyncio.create_task(self.ended())
        try:
            await asyncio.wait([waiting, ending], return_when=asyncio.FIRST_COMPLETED)
            return waiting.done() and not isinstance(waiting.exception(), TimeoutError)
        finally:
            waiting.cancel()
            ending.cancel()
            await asyncio.wait([waiting, ending])

    async def stop(self, within: float) -> None:
        """Asks it to end; kills it after `within` seconds, with everything it started."""
        if self.status is None:
            self.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), within)
        self.kill()
        await self._process.wait()
        self._reader.cancel()
        self._unwatch()

    def kill(self) -> None:
        """Kills it with everything it started, even if it is stopped."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_line(self) -> str:
        """Its last output, as the likely reason of its end."""
        for line in reversed(self.tail):
            if line.strip():
                return line
        return "it printed nothing"

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone, unless it has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._process.send_signal(number)

    async def _keep_output(self) -> None:
        stream = self._process.stdout
        assert stream is not None  # noqa: S101 - it is a PIPE
        rest = b""
        try:
            chunk = await stream.read(_LINE_BYTES)
            while chunk:
                if self._log:
                    self._log.write(chunk)
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()[-_LINE_BYTES:]
                for line in lines:
                    self._take_line(line.decode(errors="replace"))
                chunk = await stream.read(_LINE_BYTES)
        finally:
            if self._log:
                self._log.close()
        if rest:
            self._take_line(rest.decode(errors="replace"))

    def _take_line(self, line: str) -> None:
        self.tail.append(line)
        if self.spec.is_ready and not self.ready.is_set() and self.spec.is_ready(line):
            self.ready.set()

    # ---- signs of life

    def _watch(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._signs = pipe
        asyncio.get_running_loop().add_reader(pipe, self._read_signs)

    def _read_signs(self) -> None:
        assert self._signs is not None  # noqa: S101 - it is watched
        if os.read(self._signs, 4096):
            self.last_sign = time.monotonic()
        else:  # the process has closed it
            self._unwatch()

    def _unwatch(self) -> None:
        if self._signs is not None:
            asyncio.get_running_loop().remove_reader(self._signs)
            os.close(self._signs)
            self._signs = None


async def _spawn(
    spec: Spec, env: Mapping[str, str], inherits: Sequence[int]
) -> asyncio.subprocess.Process:
    death_signal = str(int(spec.at_death_of_launcher))
    shim = [sys.executable, "-S", "-E", str(_SHIM), death_signal, str(os.getpid())]
    return await asyncio.create_subprocess_exec(
        *shim,
        *spec.command,
        cwd=spec.cwd,
        env={**os.environ, **spec.env, **env, "PYTHONUNBUFFERED": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        pass_fds=inherits,
    )
