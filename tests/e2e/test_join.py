"""From nothing to a node on another machine: what an operator types, and what it prints."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.instance import (
    LAUNCHER,
    WAIT_SECONDS,
    Instance,
    environment,
    finish,
    running,
    start,
    tree_when,
)

ASK = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    home = tmp_path_factory.mktemp("first")
    options = ("--engine", "echo", "--nodes", "1", "--slots", "1", "--listen", "127.0.0.1")
    with running(home, *options) as started:
        yield started


@contextmanager
def joining(home: Path, token: str) -> Iterator["subprocess.Popen[str]"]:
    """`join` with a state folder of its own; the token in the environment."""
    env = {**environment(home), "CANOPY_NODE_TOKEN": token}
    process = start([sys.executable, str(LAUNCHER), "join"], env, subprocess.PIPE)
    try:
        yield process
    finally:
        finish(process)


def failed(home: Path, *words: str, text: str = "") -> str:
    """The one line with which `join` fails."""
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), "join", *words],
        input=text,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    [line] = done.stderr.splitlines()
    return line


def test_one_line_and_a_second_machine_serves(instance: Instance, tmp_path: Path) -> None:
    token = instance.canopy("node-token", "create", "--name", "room2").strip()
    assert "canopy1." in token
    assert "\n" not in token
    with (
        joining(tmp_path, token) as node,
        instance.session(instance.token) as staff,
        instance.program(instance.key()) as program,
    ):
        tree_when(staff, lambda tree: "room2" in {n["name"] for n in tree["nodes"] if n["usable"]})
        command = Path(f"/proc/{node.pid}/cmdline").read_bytes()
        assert b"canopy1." not in command
        assert b"amqps" not in command
        for _ in range(4):
            answer = program.post("/v1/chat/completions", json=ASK).json()
            assert answer["choices"][0]["message"]["content"] == "hello there"
        [listed] = json.loads(instance.canopy("node-token", "list", "--json"))["tokens"]
        assert (listed["name"], listed["connected"], listed["parent"]) == ("room2", True, "root")
        assert "password" not in json.dumps(listed)
        finished = tree_when(
            staff, lambda tree: any(n["name"] == "room2" and n["finished"] for n in tree["nodes"])
        )
        assert finished
        instance.canopy("node-token", "revoke", "room2")
        _, errors = node.communicate(timeout=WAIT_SECONDS)
        assert node.returncode == 1
        assert errors.splitlines()[-1].startswith("node room2: its token was revoked")
    assert json.loads(instance.canopy("node-token", "list", "--json")) == {"tokens": []}
    assert "does not know this token any more" in failed(tmp_path, "-", text=f"{token}\n")
    audit = instance.canopy("audit")
    assert "create token" in audit
    assert "revoke token" in audit


def test_who_cannot_join_hears_what_to_do(instance: Instance, tmp_path: Path) -> None:
    for address, says in (
        ("127.0.0.2", "127.0.0.2:"),  # the broker does not listen there
        ("name.invalid", "name.invalid: "),
    ):
        token = instance.canopy(
            "node-token", "create", "--name", "room3", "--address", address
        ).strip()
        line = failed(tmp_path, "-", text=token)
        assert says in line
        assert "Is Canopy running there" in line
        instance.canopy("node-token", "revoke", "room3")
