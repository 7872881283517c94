"""An instance of the benchmark's own: started as people start one, ended whatever happens."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import say
from cli import home as homes
from cli import ports, processes, rabbitmq
from cli.errors import CliError
from cli.home import REPOSITORY, Home
from cli.prepare import system
from cli.processes import ProcessRecord

END_SECONDS = 15.0  # more than `up` takes to end everything
_CANOPY = [sys.executable, str(REPOSITORY / "canopy")]
_SHIM = str(REPOSITORY / "cli" / "child.py")
_READY = "Canopy is ready: "


class NotStarted(Exception):
    """The instance did not come up; the text is what it said last."""


@dataclass(frozen=True)
class Instance:
    """A running instance."""

    home: Path
    port: int
    key: str
    record: dict[str, Any]  # its instance.json, as it was when ready
    login: str  # the one-time link of the administrator

    @property
    def model(self) -> str:
        """The model it serves."""
        return str(self.record["models"][0])

    def amqp(self, user: str) -> str:
        """The broker's address for `api`, `node` or `admin`."""
        return str(self.record["amqp"][user])

    @property
    def url(self) -> str:
        """The API's address."""
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> dict[str, ProcessRecord]:
        """Its processes by name, as they are now: one that ended is started again under another pid."""
        return {each.name: each for each in processes.read(Home(self.home))}

    def command(self, *words: str) -> tuple[list[str], dict[str, str]]:
        """A command of the launcher for this instance, and its environment."""
        return [*_CANOPY, *words], _environment(self.home)

    def rabbitmqctl(self, *words: str) -> tuple[list[str], dict[str, str]]:
        """A command for the broker, and its environment. Raises CliError without a RabbitMQ."""
        server = system.rabbitmq_server()
        if server is None:
            raise CliError(f"RabbitMQ is not installed; run: {system.remedy(['rabbitmq-server'])}")
        folder = self.home / "broker"
        environment = {
            **os.environ,
            "HOME": str(folder / "home"),  # Erlang's cookie lies there
            "RABBITMQ_NODENAME": rabbitmq.NODE,
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "ERL_EPMD_PORT": str(json.loads((folder / "ports.json").read_text())["epmd"]),
            "ERL_INETRC": str(folder / "inetrc"),
            "LC_ALL": "C.UTF-8",
        }
        return [str(server.with_name("rabbitmqctl")), *words], environment

    def pids(self) -> dict[str, int]:
        """Its processes by name, for whoever profiles them."""
        return {each["name"]: each["pid"] for each in self.record["processes"]}


@contextlib.contextmanager
def running(*options: str) -> Iterator[Instance]:
    """`canopy up` with `options`, in a folder of its own and on a free port. Raises NotStarted.

    It is a child in a session of its own, so that Ctrl-C reaches only us and we end it in order; should we be killed,
    the kernel ends it. Prepared models are shared with the usual folder: making one takes long.
    """
    folder = Path(tempfile.mkdtemp(prefix="canopy-bench-"))
    (port,) = ports.pick(1)
    _share_models(folder)
    launcher = _start(folder, ["up", "--port", str(port), *options])
    try:
        login = _wait_ready(launcher)
        _keep_output(launcher, folder / "logs" / "launcher.log")
        key = subprocess.run(
            [*_CANOPY, "key", "create"],
            env=_environment(folder),
            check=True,
            capture_output=True,
            text=True,
        )
        record = json.loads((folder / "run" / "instance.json").read_text())
        yield Instance(folder, port, key.stdout.strip(), record, login)
    except subprocess.CalledProcessError as error:
        raise NotStarted(f"no API key: {error.stderr.strip()}") from error
    finally:
        _end(launcher)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, words: Sequence[str]) -> "subprocess.Popen[str]":
    say("starting an instance: canopy " + " ".join(words))
    shim = [sys.executable, "-S", "-E", _SHIM, str(int(signal.SIGTERM)), str(os.getpid())]
    return subprocess.Popen(
        [*shim, *_CANOPY, *words],
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _wait_ready(launcher: "subprocess.Popen[str]") -> str:
    """Returns the login link."""
    last: deque[str] = deque(maxlen=5)
    for line in launcher.stdout or ():
        if line.startswith(_READY):
            return line.removeprefix(_READY).strip()
        last.append(line.rstrip())
        say(line.strip())
    raise NotStarted(
        last[-1].removeprefix("canopy: ") if last else "canopy up ended without a word"
    )


def _keep_output(launcher: "subprocess.Popen[str]", log: Path) -> None:
    """Reads on, beside us, so that a full pipe never holds the launcher up."""

    def keep() -> None:
        with contextlib.suppress(OSError, ValueError), log.open("w") as file:
            for line in launcher.stdout or ():
                file.write(line)
                file.flush()

    threading.Thread(target=keep, name="launcher's output", daemon=True).start()


def _end(launcher: "subprocess.Popen[str]") -> None:
    launcher.terminate()
    try:
        launcher.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of an instance that this shell may point to."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CANOPY_", "DATABASE_"))
    }
    return {**clean, "CANOPY_HOME": str(folder), "PYTHONUNBUFFERED": "1"}


def _share_models(folder: Path) -> None:
    models = homes.read().path / "models"
    models.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models)
