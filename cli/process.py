"""One process of an instance: started, watched, its output kept, ended in time."""

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
_LINE_BYTES = 65_536  # of a line that does not end; the rest is in the log alone
_SHIM = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Spec:
    """What to run. `at_death_of_launcher`: the signal the kernel sends when the launcher is killed."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    is_ready: Callable[[str], bool] | None = None  # told by a line of output
    at_death_of_launcher: signal.Signals = signal.SIGKILL
    cwd: Path = REPOSITORY
    secret: bool = False  # its output is not kept
    inherits: Sequence[int] = ()  # open files of ours that it gets under the same numbers
    beats: bool = False  # it gives a sign of life each second (broker/heartbeat.py)


class Child:
    """A running process with its log. It leads a process group of its own: Ctrl-C reaches only the launcher, which
    ends everything in order, and a last kill reaches grandchildren too."""

    def __init__(
        self, spec: Spec, process: asyncio.subprocess.Process, log: LogFile | None
    ) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.last_sign: float | None = None  # of life: time.monotonic()
        self._process = process
        self._log = log
        self._reader = asyncio.create_task(self._keep_output(), name=f"output of {spec.name}")
        self._signs: int | None = None  # our end of the pipe

    @classmethod
    async def start(cls, spec: Spec, logs: Path) -> "Child":
        """Starts the process. Raises OSError when that is impossible."""
        log = None if spec.secret else LogFile(logs / f"{spec.name}.log")
        if not spec.beats:
            return cls(spec, await _spawn(spec, {}, spec.inherits), log)
        ours, its = os.pipe()
        try:
            env = {HEARTBEAT_FD: str(its)}
            child = cls(spec, await _spawn(spec, env, (*spec.inherits, its)), log)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(its)
        child._listen(ours)
        return child

    @property
    def pid(self) -> int:
        """The process's id, which is its group's id too."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """None while it runs; else its exit status, negative for a signal."""
        return self._process.returncode

    async def ended(self) -> int:
        """Waits for the end and for the last of the output."""
        status = await self._process.wait()
        # A grandchild may hold the pipe open for longer than its parent lives.
        await asyncio.wait([self._reader], timeout=0.5)
        if self._reader.done() and not self._reader.cancelled():
            self._reader.result()  # an error of ours, which must not pass unseen
        return status

    async def until_ready(self) -> bool:
        """Waits until it says that it is ready (True) or ends (False)."""
        return await self.until(self.ready.wait())

    async def until(self, happens: Coroutine[Any, Any, object]) -> bool:
        """Waits for something to happen (True); False if the process ends first, or it does not happen in time."""
        happening, ended = asyncio.create_task(happens), asyncio.create_task(self.ended())
        try:
            await asyncio.wait([happening, ended], return_when=asyncio.FIRST_COMPLETED)
            return happening.done() and not isinstance(happening.exception(), TimeoutError)
        finally:
            happening.cancel()
            ended.cancel()
            await asyncio.wait([happening, ended])

    async def stop(self, within: float) -> None:
        """Asks it to end, and after `within` seconds makes it end, with everything it started."""
        if self.status is None:
            self.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), within)
        self.kill()
        await self._process.wait()
        self._reader.cancel()
        self._listen_no_more()

    def kill(self) -> None:
        """Ends it at once, with everything it started; also one that is stopped."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_line(self) -> str:
        """What it said last, as the likely reason of its end."""
        return next((line for line in reversed(self.tail) if line.strip()), "it said nothing")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._process.send_signal(number)

    async def _keep_output(self) -> None:
        stream = self._process.stdout
        assert stream is not None  # noqa: S101 - PIPE was asked for
        rest = b""
        try:
            while chunk := await stream.read(_LINE_BYTES):
                if self._log:
                    self._log.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._heard(line.decode(errors="replace"))
                rest = rest[-_LINE_BYTES:]
        finally:
            if self._log:
                self._log.close()
        if rest:
            self._heard(rest.decode(errors="replace"))

    def _heard(self, line: str) -> None:
        self.tail.append(line)
        if self.spec.is_ready and not self.ready.is_set() and self.spec.is_ready(line):
            self.ready.set()

    # ---- signs of life

    def _listen(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._signs = pipe
        asyncio.get_running_loop().add_reader(pipe, self._sign)

    def _sign(self) -> None:
        assert self._signs is not None  # noqa: S101 - it is being listened to
        if os.read(self._signs, 4096):
            self.last_sign = time.monotonic()
        else:  # the process has ended, or closed it
            self._listen_no_more()

    def _listen_no_more(self) -> None:
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
