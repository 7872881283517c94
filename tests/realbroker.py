"""A real RabbitMQ of the tests' own, and real node processes on it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from cli import certificate
from cli.home import REPOSITORY, Home
from cli.node_directory import NodeDirectory
from cli.process import Spec
from cli.rabbitmq import NODE, Broker, PrivateBroker, TlsListener

START_SECONDS = 60.0
CALL_SECONDS = 30.0
SHIM = REPOSITORY / "cli" / "child.py"


class Limit(NamedTuple):
    """Erlang expressions that set a limit of the broker, as `rabbitmqctl` does in some seconds."""

    raised: str
    lifted: str


ALARMS = {
    "memory": Limit(
        "vm_memory_monitor:set_vm_memory_high_watermark(0.0001).",
        "vm_memory_monitor:set_vm_memory_high_watermark(0.4).",
    ),
    "disk": Limit(
        'rabbit_disk_monitor:set_disk_free_limit("1000000GB").',
        'rabbit_disk_monitor:set_disk_free_limit("200MB").',
    ),
}


def evaluate(node: str, env: Mapping[str, str], expression: str) -> str:
    """The value of an Erlang expression in a broker, as text. `env`: what the broker runs with."""
    called = subprocess.run(
        [shutil.which("erl_call") or "erl_call", "-sname", node, "-e"],
        input=f"{expression}\n",
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )
    if called.returncode or not called.stdout.startswith("{ok,"):
        raise RuntimeError(
            f"{node} could not evaluate {expression}: {called.stdout}{called.stderr}"
        )
    return called.stdout


def launch(spec: Spec, log: Path) -> subprocess.Popen[bytes]:
    """Starts a process that dies with the tests; its output goes to `log`."""
    shim = [
        sys.executable,
        "-S",
        "-E",
        str(SHIM),
        str(int(spec.at_death_of_launcher)),
        str(os.getpid()),
    ]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*shim, *spec.command],
            env={**os.environ, **spec.env, "PYTHONUNBUFFERED": "1"},
            cwd=spec.cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[Any], seconds: float = 10.0) -> int:
    """Asks the process to end, makes it end after `seconds`; its exit status."""
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class Server:
    """The broker as `canopy up` runs it. Its address outlives a stop, a kill and a restart.

    `listen`: an address at which it speaks TLS beside that. A missing or broken RabbitMQ fails the
    tests that need it.
    """

    def __init__(
        self, folder: Path, listen: str | None = None, directory: NodeDirectory | None = None
    ) -> None:
        self._home = Home(folder)
        self._home.make()
        tls = None
        if listen is not None:
            tls = TlsListener(listen, certificate.load_or_create(self._home.broker))
        self.private = PrivateBroker(self._home, tls, directory)
        self.private.prepare()
        self._server = replace(self.private.server(), at_death_of_launcher=signal.SIGKILL)
        self._epmd = launch(self.private.epmd(), self._home.logs / "epmd.log")
        self._log = self._home.logs / "broker.log"
        self._process: subprocess.Popen[bytes]

    @property
    def address(self) -> Broker:
        """How to reach it."""
        return self.private.address()

    def urls(self, user: str) -> list[str]:
        """Its addresses for other machines."""
        listener = self.private.listener()
        assert listener is not None
        return listener.urls(user, self.private.passwords[user])

    def launch(self) -> None:
        """Starts it. Not in a thread: the kernel would end it with the thread."""
        self._process = launch(self._server, self._log)

    def wait_accepting(self) -> None:
        """Returns when it accepts connections."""
        self._wait_accepting("127.0.0.1", "amqp")

    def wait_accepting_others(self, host: str) -> None:
        """Returns when it accepts connections with TLS, which is later."""
        self._wait_accepting(host, "amqps")

    def _wait_accepting(self, host: str, port: str) -> None:
        _wait_accepting(host, self.private.ports[port], self._process, self._log)

    def has_ended(self, within: float) -> bool:
        """Whether it ends by itself in that time."""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Ends it in order."""
        stop(self._process)

    def kill(self) -> None:
        """Ends it at once, as a power failure would."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends it and what was started beside it, at once: its data go with its folder."""
        self.kill()
        stop(self._epmd)

    def raise_alarm(self, kind: str) -> None:
        """Has the broker think that it lacks memory or disk (`kind`, a key of ALARMS)."""
        self._evaluate(ALARMS[kind].raised)

    def lift_alarm(self, kind: str) -> None:
        """Gives the broker its usual limit back."""
        self._evaluate(ALARMS[kind].lifted)

    def _evaluate(self, expression: str) -> None:
        evaluate(NODE, self._server.env, expression)


@contextmanager
def private_server(
    folder: Path, listen: str | None = None, directory: NodeDirectory | None = None
) -> Iterator[Server]:
    """A running broker that can be stopped and started again."""
    server = Server(folder, listen, directory)
    server.launch()
    try:
        server.wait_accepting()
        yield server
    finally:
        server.close()


@contextmanager
def private_broker(folder: Path) -> Iterator[Broker]:
    """A running broker."""
    with private_server(folder) as server:
        yield server.address


def _wait_accepting(host: str, port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ did not start:\n{log.read_text()[-2000:]}") from None
            threading.Event().wait(0.1)  # a starting broker offers nothing to wait for but its port


class NodeProcess:
    """`python -m worker` of the code in `folder`, as a child; entering waits until it serves.

    `within`: a command that becomes it, such as `nsenter`.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        *options: str,
        env: Mapping[str, str] | None = None,
        folder: Path = REPOSITORY,
        within: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.lines: list[str] = []
        self._awaited: dict[str, threading.Event] = {}
        self._ready = self.said(" ready ")
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", "worker", "--name", name, *options],
            env={
                **os.environ,
                "CANOPY_AMQP_URL": broker.amqp["node"],
                "PYTHONUNBUFFERED": "1",
                **(env or {}),
            },
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line)
                for text, heard in list(self._awaited.items()):
                    if text in line:
                        heard.set()
        for heard in list(self._awaited.values()):
            heard.set()

    def said(self, text: str) -> threading.Event:
        """Set once it says a line with that text, after this call; or when it has ended."""
        return self._awaited.setdefault(text, threading.Event())

    def wait_ready(self, seconds: float = 90.0) -> Self:
        """Returns when the node serves; fails with its output when it does not."""
        if not self._ready.wait(seconds) or self.process.poll() is not None:
            raise RuntimeError(f"node {self.name} did not become ready:\n{''.join(self.lines)}")
        return self

    def wait_exit(self, seconds: float = 15.0) -> int:
        status = self.process.wait(seconds)
        self._reader.join(5)
        return status

    def __enter__(self) -> Self:
        return self.wait_ready()

    def __exit__(self, *_: object) -> None:
        stop(self.process)
        self._reader.join(5)


def echo_node(broker: Broker, name: str, parent: str, *options: str) -> NodeProcess:
    """A node with the echo engine, model `echo`."""
    fixed = ("--parent", parent, "--model", "echo", "--engine", "echo", "--wait", "20")
    return NodeProcess(broker, name, *fixed, *options)


def root(broker: Broker, name: str = "root", model: str = "echo") -> NodeProcess:
    """A root."""
    return NodeProcess(broker, name, "--engine", "none", "--model", model, "--wait", "20")
