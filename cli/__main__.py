"""The command line: the map of all commands. Each is imported when it runs."""

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from cli.console import open_standard_streams
from cli.detached import report_failure
from cli.errors import CliError, explain_os_error
from cli.lazy import Group, LazyCommand

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

# Name -> command in cli/commands/, and the first line of its docstring; in the order of `--help`.
_COMMANDS = {
    "up": ("up:up", "Prepare what is missing, then start everything; Ctrl-C stops it."),
    "down": ("down:down", "Stop what `up` started, or is still starting."),
    "status": ("status:status", "Show what runs here, and how to reach and extend it."),
    "doctor": ("doctor:doctor", "List what this machine lacks, each with its remedy."),
    "restart": (
        "restart:restart",
        "Replace every running process in turn, without a failed request.",
    ),
    "node": ("node:node", "Run one more worker, on any machine that reaches the broker."),
    "login": (
        "access:login",
        "Print a fresh one-time login link, alone on standard output.",
    ),
    "tree": ("tree:tree", "Draw the tree of nodes."),
    "log": ("tree:log", "Print one node's state."),
    "attach": ("tree:attach", "Move a running node, with all below it, under another parent."),
    "drain": ("tree:drain", "Let a node finish its jobs; hand it and all below it nothing new."),
    "resume": ("tree:resume", "Let a drained node take jobs again."),
    "bench": ("development:bench", "Run a benchmark: bench NAME [--json FILE]."),
    "test": ("development:test", "Run all tests, some tiers, or pytest with your arguments."),
}
_KEY = {
    "create": ("access:create_key", "Print a new API key, alone on standard output."),
}
_DEAD = {
    "list": ("dead:list_letters", "List them, oldest first."),
    "show": ("dead:show", "Show a letter's headers and content."),
    "replay": ("dead:replay", "Run a job again; print its answer."),
    "drop": ("dead:drop", "Remove letters for good."),
}


def command_line() -> Group:
    """All commands."""
    key = Group("key", "API keys.", _lazy(_KEY))
    dead = Group("dead", "Dead letters: jobs that were given up on.", _lazy(_DEAD))
    help_text = (
        "Canopy: a self-hosted ChatGPT-like service on RabbitMQ.\n\nStart with `./canopy up`."
    )
    return Group("canopy", help_text, [*_lazy(_COMMANDS), key, dead])


def _lazy(table: Mapping[str, tuple[str, str]]) -> list[LazyCommand]:
    commands = []
    for name, (target, summary) in table.items():
        commands.append(LazyCommand(name, f"cli.commands.{target}", summary))
    return commands


def main() -> int:
    """Runs the command; an expected failure is one line on standard error and an exit status."""
    open_standard_streams()
    try:
        status: int | None = command_line().main(
            prog_name="canopy", standalone_mode=False, **_SETTINGS
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except CliError as error:
        return fail(error)
    except OSError as error:
        return fail(explain_os_error(error))
    except (click.Abort, KeyboardInterrupt):
        return 130
    return status or 0


def fail(error: CliError) -> int:
    """Prints a failure, preceded by its detail, and returns the exit status."""
    with contextlib.suppress(OSError):  # standard error may be closed
        if error.detail:
            print(error.detail, file=sys.stderr)
        print(f"canopy: {error}", file=sys.stderr, flush=True)
    report_failure(str(error))
    return error.code


if __name__ == "__main__":
    sys.exit(main())
