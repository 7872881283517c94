"""`bench` and `test`: the repository's own programs, with their arguments as they are."""

import click

from cli import testing
from cli.home import become_module

_ALL_ARGUMENTS = {"ignore_unknown_options": True, "help_option_names": []}


@click.command(context_settings=_ALL_ARGUMENTS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Run a benchmark: bench NAME [--json FILE]."""
    become_module("bench", *arguments)


@click.command(context_settings=_ALL_ARGUMENTS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def test(arguments: tuple[str, ...]) -> None:
    """Run all tests, some tiers, or pytest with your arguments.

    Tiers: lint, unit, frontend, broker, faults, e2e, clients.
    """
    raise click.exceptions.Exit(testing.run(arguments))
