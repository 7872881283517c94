"""The map of commands: its help, and that a command imports no more than it needs."""

import asyncio
import inspect
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import click
import pytest

from cli import control_server, instance, lock, processes
from cli.__main__ import command_line
from cli.control import Message
from cli.home import REPOSITORY, Home
from cli.lazy import LazyCommand
from cli.processes import ProcessRecord

# What takes longer to import than `--help` may take in all.
HEAVY = {
    "asyncio",
    "pydantic",
    "broker",
    "httpx",
    "msgspec",
    "pika",
    "psutil",
    "structlog",
    "topology",
}

IMPORTED = """
import json, sys
from cli.__main__ import main
sys.argv = ["canopy", *json.loads(sys.argv[1])]
try:
    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def commands() -> Iterator[LazyCommand]:
    """Every command that is no group."""
    for command in command_line().commands.values():
        if isinstance(command, LazyCommand):
            yield command
        else:
            yield from command.commands.values()  # type: ignore[attr-defined]


def imported(home: Path, *words: str) -> set[str]:
    """The packages in memory at the end of a command."""
    packages: list[str] = json.loads(output_and_imports(home, *words)[-1])
    return set(packages)


def output_and_imports(home: Path, *words: str) -> list[str]:
    """The lines that a command prints, then the packages in memory at its end, as JSON."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CANOPY_")}
    finished = subprocess.run(
        [sys.executable, "-c", IMPORTED, json.dumps(words)],
        cwd=REPOSITORY,
        env={**env, "CANOPY_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return finished.stdout.splitlines()


def test_the_launcher_of_every_command_imports_nothing_that_only_preparing_needs() -> None:
    script = "import sys, cli.prepare.launch; print(*sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-S", "-c", script],  # without .pth files, which import what they like
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    only_preparing = {"ctypes", "dataclasses", "inspect", "shutil", "subprocess", "tempfile"}
    assert set(finished.stdout.split()) & only_preparing == set()


@pytest.mark.parametrize("words", [("--help",), ("status",), ("down",), ("nonsense",)])
def test_what_needs_no_instance_imports_nothing_heavy(tmp_path: Path, words: tuple[str]) -> None:
    assert imported(tmp_path, *words) & HEAVY == set()


RECORD = {
    "pid": 1,
    "started": 0.0,
    "url": "http://127.0.0.1:8000",
    "tls": None,
    "models": ["echo"],
    "roots": {"echo": "root"},
    "asked": {"echo": "echo"},
    "engine": "echo",
    "policy": None,
    "amqp": {"node": "amqp://127.0.0.1:5672/%2F"},
    "commands": ["problems"],
}


async def test_status_of_a_running_instance_leaves_the_tree_to_the_launcher(
    tmp_path: Path,
) -> None:
    requests: list[Message] = []

    async def answer(request: Message) -> AsyncGenerator[Message]:
        requests.append(request)
        yield {"problems": ["n1: its clock is wrong"]}

    home = Home(tmp_path)
    with lock.hold(home):
        instance.write(home, RECORD)
        processes.write(home, [ProcessRecord.of("launcher", os.getpid())])
        async with control_server.serving(home, answer):
            lines = await asyncio.to_thread(output_and_imports, tmp_path, "status")
    assert requests == [{"command": "problems"}]
    assert "problem: n1: its clock is wrong" in lines
    assert any(line.startswith("  launcher       pid") and line.endswith("MB") for line in lines)
    assert set(json.loads(lines[-1])) & HEAVY == set()


async def test_status_says_that_the_launcher_is_gone_or_older(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with lock.hold(home):
        instance.write(home, RECORD)
        (gone,) = await problems_of(tmp_path)
        instance.write(home, {**RECORD, "commands": []})
        (older,) = await problems_of(tmp_path)
    assert "takes no requests" in gone
    assert "older version" in older


async def problems_of(home: Path) -> list[str]:
    lines = await asyncio.to_thread(output_and_imports, home, "status")
    return [line for line in lines if line.startswith("problem: ")]


def test_the_tree_is_read_without_http_or_drawing_libraries(tmp_path: Path) -> None:
    assert imported(tmp_path, "tree") & {"httpx", "pydantic", "structlog"} == set()


@pytest.mark.parametrize("command", list(commands()), ids=lambda command: str(command.name))
def test_the_map_says_what_the_docstring_says(command: LazyCommand) -> None:
    real = command.load()
    assert real.name == command.name
    assert real.help
    summary, _, _ = inspect.cleandoc(real.help).partition("\n")
    assert summary == command.help


def test_the_help_lists_every_command_at_full_length() -> None:
    root = command_line()
    text = root.get_help(click.Context(root, max_content_width=100, terminal_width=100))
    width = max(map(len, root.commands)) + 1
    for command in root.commands.values():
        assert f"  {command.name:<{width}} {command.help}" in text
