"""`python -m bench NAME`, or `./canopy bench NAME`. A new benchmark is a module and a line here."""

import sys

import click

from bench.chaos.command import command as chaos
from bench.dispatch.command import command as dispatch
from bench.engine.command import command as engine
from bench.fair.command import command as fair
from bench.http.command import command as http
from bench.many.command import command as many
from bench.options import run
from bench.policy.command import command as policy

BENCHMARKS = {
    "engine": engine,
    "dispatch": dispatch,
    "http": http,
    "policy": policy,
    "fair": fair,
    "chaos": chaos,
    "many": many,
}


@click.group(commands=BENCHMARKS)
def app() -> None:
    """Benchmarks of Canopy. Each starts an instance of its own and ends it."""


if __name__ == "__main__":
    sys.exit(run(app, "canopy bench"))
