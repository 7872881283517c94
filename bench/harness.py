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
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import NotStarted
from bench.report import say
from cli import home as homes
from cli import ports, processes
from cli.home import REPOSITORY, Home, module_environment
from cli.processes import ProcessRecord

END_SECONDS = 15.0  # longer than `canopy up` takes to end everything
CANOPY = [sys.executable, str(REPOSITORY / "canopy")]
START_SECONDS = 900.0  # longer than `canopy up` takes to give up on a large model
_OUTPUT_SECONDS = 600.0  # of an installation
_READY = "Canopy is ready: "
_LOG_SECONDS = 0.05  # between two looks at the launcher's output
_OURS = ("CANOPY_", "DATABASE_")  # variables that would lead to another instance


@dataclass(frozen=True)
class Instance:
    """A running instance of Canopy, a private one of the benchmark's own."""

    home: Path
    port: int
    key: str  # of an administrator
    record: Mapping[str, Any]  # its instance.json, as written when it became ready

    @property
    def model(self) -> str:
        return str(self.record["models"][0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> dict[str, ProcessRecord]:
        """Its processes by name, as they run now: a restart changes the pid."""
        return {record.name: record for record in processes.read(Home(self.home))}

    def pids(self) -> dict[str, list[int]]:
        """The processes that a request passes: `api` and `nodes` are all of their kind."""
        groups: dict[str, list[int]] = {}
        for name, record in self.processes().items():
            group = re.sub(r"^n\d+$", "nodes", re.sub(r"^api-\d+$", "api", name))
            if group in ("api", "nodes", "root", "broker"):
                groups.setdefault(group, []).append(record.pid)
        return groups

    @property
    def environment(self) -> dict[str, str]:
        """Of programs that work on this instance."""
        return clean_environment(CANOPY_HOME=str(self.home))


@contextlib.contextmanager
def running(
    *options: str,
    environment: Mapping[str, str] | None = None,
    keep_logs: Path | None = None,
) -> Iterator[Instance]:
    """`canopy up` with these options, in a folder of its own and on a free port.

    Prepared models are shared with the usual CANOPY_HOME: making one takes long. `keep_logs`: gets
    a copy of its logs, also of a failed start. Raises NotStarted.
    """
    _allow_many_connections()
    folder = Path(tempfile.mkdtemp(prefix="canopy-bench-"))
    (port,) = ports.pick(1)
    models = homes.read().path / "models"
    models.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models)
    settings = clean_environment(CANOPY_HOME=str(folder), **(environment or {}))
    command = [*CANOPY, "up", "--port", str(port), *options]
    say("starting an instance: canopy " + " ".join(command[2:]))
    log = folder / "logs" / "launcher.log"
    log.parent.mkdir()
    try:
        with (
            log.open("w") as file,
            child(command, settings, stdout=file, stderr=file, within=END_SECONDS) as launcher,
        ):
            _until_ready(launcher, log)
            key = output([*CANOPY, "key", "create"], settings)
            record = json.loads((folder / "run" / "instance.json").read_text())
            yield Instance(folder, port, key.strip(), record)
    finally:
        if keep_logs:
            shutil.copytree(log.parent, keep_logs, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def child(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    within: float = 5.0,
    **pipes: Any,
) -> Iterator["subprocess.Popen[str]"]:
    """A process that ends with the block, within so many seconds, or with us if we are killed.

    `pipes`: its `stdin`, `stdout` and `stderr`; nothing by default.
    It leads a session of its own: Ctrl-C reaches us alone, and the last kill its descendants too.
    """
    shim = str(REPOSITORY / "cli" / "child.py")
    ends_with_us = [sys.executable, "-S", "-E", shim, str(int(signal.SIGTERM)), str(os.getpid())]
    process = subprocess.Popen(
        ends_with_us + list(command),
        env=environment,
        text=True,
        **(dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL) | pipes),
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
    inherited = module_environment().items()
    environment = {name: value for name, value in inherited if not name.startswith(_OURS)}
    return {**environment, "PYTHONUNBUFFERED": "1", **extra}


def _allow_many_connections() -> None:
    """Raises the limit of open files, of which every request is one, here and in children."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def _until_ready(launcher: "subprocess.Popen[str]", log: Path) -> None:
    """Raises NotStarted with the launcher's last line, if it ends or takes too long."""
    last_line = "canopy up ended without a word"
    deadline = time.monotonic() + START_SECONDS
    with log.open() as lines:
        while True:
            line = lines.readline().strip()
            if line.startswith(_READY):
                return
            if line:
                last_line = line
                say(line)
            elif launcher.poll() is not None:
                raise NotStarted(last_line.removeprefix("canopy: "))
            elif time.monotonic() > deadline:
                raise NotStarted(f"not ready in time; the last line: {last_line}")
            else:
                time.sleep(_LOG_SECONDS)


def output(
    command: Sequence[str], environment: Mapping[str, str], within: float = _OUTPUT_SECONDS
) -> str:
    """What a command prints. Raises NotStarted if it fails or takes longer."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
        )
    except subprocess.CalledProcessError as error:
        raise NotStarted(error.stderr.strip().rpartition("\n")[2]) from error
    except subprocess.TimeoutExpired as error:
        raise NotStarted(str(error)) from error
    return done.stdout
