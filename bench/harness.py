"""Starts what a benchmark measures, and ends it whatever happens."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.errors import NotStarted
from bench.report import say
from cli import home as homes
from cli import ports, processes
from cli.home import REPOSITORY, Home, module_command, module_environment
from cli.processes import ProcessRecord

END_SECONDS = 15.0  # longer than `canopy up` takes to end everything
_CANOPY = [sys.executable, str(REPOSITORY / "canopy")]
_READY = "Canopy is ready: "
_OURS = ("CANOPY_", "DATABASE_")  # variables that would lead to another instance


@dataclass(frozen=True)
class Instance:
    """A running instance of Canopy, a private one of the benchmark's own."""

    home: Path
    port: int
    key: str  # of an administrator
    record: Mapping[str, Any]  # its instance.json, as written when it became ready
    login: str  # the administrator's one-time link

    @property
    def model(self) -> str:
        return str(self.record["models"][0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def amqp(self, user: str) -> str:
        """The broker's address for `api`, `node` or `admin`."""
        return str(self.record["amqp"][user])

    def processes(self) -> dict[str, ProcessRecord]:
        """Its processes by name, as they run now: a restart changes the pid."""
        return {record.name: record for record in processes.read(Home(self.home))}

    def pids(self, *, grouped: bool = False) -> dict[str, list[int]]:
        """Its processes by name; `grouped`: api, api-2, … are `api`, and n1, n2, … are `nodes`."""
        groups: dict[str, list[int]] = {}
        for name, record in self.processes().items():
            group = name
            if grouped:
                group = re.sub(r"^n\d+$", "nodes", re.sub(r"^api-\d+$", "api", name))
            groups.setdefault(group, []).append(record.pid)
        return groups

    def command(self, *words: str) -> tuple[list[str], dict[str, str]]:
        """A launcher command for this instance, and its environment."""
        return [*_CANOPY, *words], clean_environment(CANOPY_HOME=str(self.home))

    def run_module(self, name: str, *words: str) -> str:
        """What a short program of ours prints beside this instance. Raises NotStarted."""
        environment = clean_environment(CANOPY_HOME=str(self.home))
        return _output(module_command(name, *words), environment)


@contextlib.contextmanager
def running(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[Instance]:
    """`canopy up` with these options, in a folder of its own and on a free port.

    Prepared models are shared with the usual CANOPY_HOME: making one takes long. Raises NotStarted.
    """
    folder = Path(tempfile.mkdtemp(prefix="canopy-bench-"))
    (port,) = ports.pick(1)
    _share_models(folder)
    settings = clean_environment(CANOPY_HOME=str(folder), **(environment or {}))
    command = [*_CANOPY, "up", "--port", str(port), *options]
    say("starting an instance: canopy " + " ".join(command[2:]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        with child(command, settings, within=END_SECONDS, **pipes) as launcher:
            login = _until_ready(launcher)
            _log_output(launcher, folder / "logs" / "launcher.log")
            key = _output([*_CANOPY, "key", "create"], settings)
            record = json.loads((folder / "run" / "instance.json").read_text())
            yield Instance(folder, port, key.strip(), record, login)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def child(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[str] = subprocess.DEVNULL,
    stderr: int | IO[str] = subprocess.DEVNULL,
    within: float = 5.0,
) -> Iterator["subprocess.Popen[str]"]:
    """A process that ends with the block, within so many seconds, or with us if we are killed.

    It leads a session of its own: Ctrl-C reaches us alone, and the last kill its descendants too.
    """
    shim = str(REPOSITORY / "cli" / "child.py")
    ends_with_us = [sys.executable, "-S", "-E", shim, str(int(signal.SIGTERM)), str(os.getpid())]
    process = subprocess.Popen(
        [*ends_with_us, *command],
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(within)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of our programs, without what leads to another instance."""
    environment = module_environment()
    for name in list(environment):
        if name.startswith(_OURS):
            del environment[name]
    return {**environment, "PYTHONUNBUFFERED": "1", **extra}


def allow_many_connections() -> None:
    """Raises the limit of open files, of which every request is one, here and in children."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def _until_ready(launcher: "subprocess.Popen[str]") -> str:
    """Returns the login link. Raises NotStarted with the launcher's last line."""
    last_lines: deque[str] = deque(["canopy up ended without a word"], maxlen=1)
    for line in launcher.stdout or ():
        if line.startswith(_READY):
            return line.removeprefix(_READY).strip()
        last_lines.append(line.strip())
        say(line.strip())
    raise NotStarted(last_lines[-1].removeprefix("canopy: "))


def _log_output(launcher: "subprocess.Popen[str]", log: Path) -> None:
    """Keeps reading in a thread: a full pipe would block the launcher."""

    def copy() -> None:
        with contextlib.suppress(OSError, ValueError), log.open("w") as file:
            for line in launcher.stdout or ():
                file.write(line)
                file.flush()

    threading.Thread(target=copy, name="launcher output", daemon=True).start()


def _output(command: Sequence[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise NotStarted(error.stderr.strip().rpartition("\n")[2]) from error
    return done.stdout


def _share_models(folder: Path) -> None:
    models = homes.read().path / "models"
    models.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models)
