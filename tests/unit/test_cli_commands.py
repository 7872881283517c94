"""The map of commands: its help, and that a command imports no more than it needs."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.__main__ import command_line
from cli.home import REPOSITORY
from cli.lazy import LazyCommand

# What takes longer to import than `--help` may take in all.
HEAVY = {
    "asyncio",
    "pydantic",
    "typer",
    "broker",
    "httpx",
    "msgspec",
    "pika",
    "psutil",
    "rich",
    "structlog",
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
    """The packages in memory at the end of a command, where no instance runs."""
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
    return set(json.loads(finished.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [("--help",), ("status",), ("down",), ("nonsense",)])
def test_what_needs_no_instance_imports_nothing_heavy(tmp_path: Path, words: tuple[str]) -> None:
    heavy = imported(tmp_path, *words) & HEAVY
    assert heavy <= ({"psutil"} if words == ("down",) else set())


def test_the_tree_is_read_without_http_or_drawing_libraries(tmp_path: Path) -> None:
    assert imported(tmp_path, "tree") & {"httpx", "pydantic", "rich", "structlog"} == set()


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
    for command in root.commands.values():
        assert f"  {command.name:<8} {command.help}" in text
