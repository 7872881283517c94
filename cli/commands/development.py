"""`bench` and `test`: the repository's own programs, with their arguments as they are."""

import typer

from cli import testing
from cli.home import become_module


def bench(context: typer.Context) -> None:
    """Run a benchmark: bench NAME [--json FILE]."""
    become_module("bench", *context.args)


def test(context: typer.Context) -> None:
    """Run all tests, some tiers, or pytest with your arguments.

    Tiers: lint, unit, frontend, broker, faults, e2e, clients.
    """
    raise typer.Exit(testing.run(context.args))
