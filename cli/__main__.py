"""The command line: the map of all commands. Each is imported when it runs."""

import contextlib
import sys
from typing import Any

import click

from cli.console import open_standard_streams
from cli.detached import report_failure
from cli.errors import CliError, explain_os_error
from cli.lazy import Group, LazyCommand

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def command_line() -> Group:
    """Every command, in the order of `--help`, with the first line of its function's docstring."""
    key = Group(
        "key",
        "API keys.",
        [
            LazyCommand(
                "create",
                "cli.commands.access:create_key",
                "Print a new API key, alone on standard output.",
            ),
        ],
    )
    dead = Group(
        "dead",
        "Dead letters: jobs that were given up on.",
        [
            LazyCommand("list", "cli.commands.dead:list_letters", "List them, oldest first."),
            LazyCommand("show", "cli.commands.dead:show", "Show a letter's headers and content."),
            LazyCommand("replay", "cli.commands.dead:replay", "Run a job again; print its answer."),
            LazyCommand("drop", "cli.commands.dead:drop", "Remove letters for good."),
        ],
    )
    return Group(
        "canopy",
        "Canopy: a self-hosted ChatGPT-like service on RabbitMQ.\n\nStart with `./canopy up`.",
        [
            LazyCommand(
                "up",
                "cli.commands.up:up",
                "Prepare what is missing, then start everything; Ctrl-C stops it.",
            ),
            LazyCommand(
                "down", "cli.commands.down:down", "Stop what `up` started, or is still starting."
            ),
            LazyCommand(
                "status",
                "cli.commands.status:status",
                "Show what runs here, and how to reach and extend it.",
            ),
            LazyCommand(
                "doctor",
                "cli.commands.doctor:doctor",
                "List what this machine lacks, each with its remedy.",
            ),
            LazyCommand(
                "restart",
                "cli.commands.restart:restart",
                "Replace every running process in turn, without a failed request.",
            ),
            LazyCommand(
                "node",
                "cli.commands.node:node",
                "Run one more worker, on any machine that reaches the broker.",
            ),
            key,
            LazyCommand(
                "login",
                "cli.commands.access:login",
                "Print a fresh one-time login link, alone on standard output.",
            ),
            LazyCommand("tree", "cli.commands.tree:tree", "Draw the tree of nodes."),
            LazyCommand("log", "cli.commands.tree:log", "Print one node's state."),
            LazyCommand(
                "attach",
                "cli.commands.tree:attach",
                "Move a running node, with all below it, under another parent.",
            ),
            LazyCommand(
                "drain",
                "cli.commands.tree:drain",
                "Let a node finish its jobs; hand it and all below it nothing new.",
            ),
            LazyCommand(
                "resume", "cli.commands.tree:resume", "Let a drained node take jobs again."
            ),
            dead,
            LazyCommand(
                "bench",
                "cli.commands.development:bench",
                "Run a benchmark: bench NAME [--json FILE].",
            ),
            LazyCommand(
                "test",
                "cli.commands.development:test",
                "Run all tests, some tiers, or pytest with your arguments.",
            ),
        ],
    )


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
