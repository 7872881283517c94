"""`./canopy gateway` with the clients of docs/clients, a shell's sockets, and TLS."""

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil
import pytest

from cli.home import REPOSITORY
from tests.instance import Instance, at_rest, tree_when

CLIENTS = REPOSITORY / "docs" / "clients"
HOST = "127.0.0.1"


def listening(process: "subprocess.Popen[str]") -> int:
    """The port that a gateway names in its first line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "is ready: " in line, line
    return int(line.partition(f"{HOST}:")[2].partition(",")[0])


@pytest.fixture(scope="module")
def gateway(service: Instance) -> Iterator[tuple[int, int]]:
    """Its port and process id."""
    with service.child("gateway", "--port", "0") as process:
        yield listening(process), process.pid


@pytest.fixture
def port(gateway: tuple[int, int]) -> int:
    return gateway[0]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


Frames = Iterator[dict[str, Any]]


@contextmanager
def asking(
    port: int, key: str, *lines: dict[str, Any], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[socket.socket, Frames]]:
    """A connection that begins with these lines, and the frames that come."""
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((HOST, port), timeout=60))
        if tls is not None:
            connection = stack.enter_context(
                tls.wrap_socket(connection, server_hostname="localhost")
            )
        received = stack.enter_context(connection.makefile("rb"))
        sent = [key.encode(), *(json.dumps(line).encode() for line in lines)]
        connection.sendall(b"\n".join(sent) + b"\n")
        yield connection, (json.loads(line) for line in received if line.strip())


def question(text: str, **fields: Any) -> dict[str, Any]:
    return {"text": text, "timestamp": 1.5, **fields}


def test_the_python_client(port: int, key: str) -> None:
    program = str(CLIENTS / "gateway.py")
    assert run(sys.executable, program, HOST, str(port), key, "one two") == "one two\n"


def test_the_c_client(port: int, key: str, tmp_path: Path) -> None:
    program = str(tmp_path / "gateway")
    run("cc", "-Wall", "-Wextra", "-Werror", "-o", program, str(CLIENTS / "gateway.c"))
    lines = run(program, HOST, str(port), key, json.dumps(question("one two"))).splitlines()
    last = json.loads(lines[-1])
    assert (last["kind"], last["text"], last["timestamp"]) == ("done", "one two", 1.5)


def test_two_questions_at_once_and_one_is_cancelled(
    port: int, key: str, staff: httpx.Client
) -> None:
    long = question("word " * 2000, id="long")
    short = question("short one", id="short", stream=False)
    with asking(port, key, long, short) as (connection, frames):
        seen: list[dict[str, Any]] = []
        for frame in frames:
            seen.append(frame)
            if frame.get("id") == "short" and frame["kind"] == "done":
                connection.sendall(b'{"cancel": "long"}\n')
            if frame["kind"] == "cancelled":
                break
    assert seen[0]["kind"] == "ready"
    assert "text" in {frame["kind"] for frame in seen if frame.get("id") == "long"}
    tree_when(staff, at_rest)


def test_a_connection_that_is_closed_frees_the_slot(
    port: int, key: str, staff: httpx.Client
) -> None:
    with asking(port, key, question("word " * 2000)) as (_, frames):
        assert next(frame for frame in frames if frame["kind"] == "text")
    tree_when(staff, at_rest)


def test_refusals_are_frames(port: int, key: str) -> None:
    with asking(port, "canopy_wrong") as (_, frames):
        refused = next(frames)
    assert (refused["kind"], refused["code"]) == ("error", "invalid_api_key")
    with asking(port, key, question("hello", model="nosuch")) as (_, frames):
        next(frames)
        assert next(frames)["code"] == "model_not_found"


def test_noise_harms_nobody(gateway: tuple[int, int], key: str) -> None:
    port, pid = gateway
    noise = Random(9)
    process = psutil.Process(pid)
    _noise(port, key, noise, 40)
    before = process.memory_info().rss
    _noise(port, key, noise, 400)
    assert process.memory_info().rss - before < 20_000_000
    with asking(port, key, question("still here", stream=False)) as (_, frames):
        assert [next(frames)["kind"], next(frames)["text"]] == ["ready", "still here"]


def _noise(port: int, key: str, noise: Random, connections: int) -> None:
    """Random lines after a good key, and connections that break off anywhere."""
    for number in range(connections):
        with socket.create_connection((HOST, port), timeout=30) as connection:
            lines = [noise.randbytes(noise.randrange(200)) for _ in range(5)]
            connection.sendall(key.encode() + b"\n" + b"\n".join(lines))
            if number % 2:
                connection.shutdown(socket.SHUT_WR)
                with connection.makefile("rb") as received:
                    received.read()


def test_tls(service: Instance, key: str, tmp_path: Path) -> None:
    certificate, private_key = _certificate(tmp_path)
    files = ["--tls-cert", str(certificate), "--tls-key", str(private_key)]
    context = ssl.create_default_context(cafile=str(certificate))
    with service.child("gateway", "--port", "0", *files) as process:
        port = listening(process)
        with asking(port, key, question("hello", stream=False), tls=context) as (_, frames):
            assert [next(frames)["kind"], next(frames)["text"]] == ["ready", "hello"]


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost that it signed itself, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    run(*words.split(), *name, "-keyout", str(key), "-out", str(certificate))
    return certificate, key
