"""A real RabbitMQ of the tests' own, and real node processes on it."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from cli.home import REPOSITORY, Home
from cli.process import Spec
from cli.rabbitmq import Broker, PrivateBroker

START_SECONDS = 60.0
SHIM = REPOSITORY / "cli" / "child.py"


def launch(spec: Spec, log: Path) -> subprocess.Popen[bytes]:
    """Starts a process that dies with the tests; its output goes to `log`."""
    shim = [sys.executable, "-S", "-E", str(SHIM), str(int(spec.at_death_of_launcher)), str(os.getpid())]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*shim, *spec.command],
            env={**os.environ, **spec.env, "PYTHONUNBUFFERED": "1"},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], seconds: float = 10.0) -> int:
    """Asks the process to end, makes it end after `seconds`; its exit status."""
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def private_broker(folder: Path) -> Iterator[Broker]:
    """The broker as `canopy up` runs it. A missing or broken RabbitMQ fails the tests that need it."""
    home = Home(folder)
    home.make()
    private = PrivateBroker(home)
    private.prepare()
    command, env = private.server_command()
    epmd = launch(Spec("epmd", private.epmd_command()), home.logs / "epmd.log")
    server = launch(Spec("broker", command, env), home.logs / "broker.log")
    try:
        _wait_accepting(private.ports["amqp"], server, home.logs / "broker.log")
        yield private.address()
    finally:
        stop(server)
        stop(epmd)


def _wait_accepting(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ did not start:\n{log.read_text()[-2000:]}") from None
            threading.Event().wait(0.1)  # a starting broker offers nothing to wait for but its port


class NodeProcess:
    """`python -m worker` as a child; entering waits until it serves."""

    def __init__(self, broker: Broker, name: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._ready = threading.Event()
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker", "--name", name, *options],
            env={**os.environ, "CANOPY_AMQP_URL": broker.amqp["node"], "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=REPOSITORY,
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
                if " ready " in line:
                    self._ready.set()
        self._ready.set()

    def wait_ready(self, seconds: float = 30.0) -> Self:
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
