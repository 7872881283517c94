"""`prepare`: what `up` does before it starts anything."""

import click

from cli import home as homes
from cli import launcher
from cli.prepare.model import Model


@click.command()
@click.option("--model", multiple=True, help="Model to download and convert, too. Repeatable.")
def prepare(model: tuple[str, ...]) -> None:
    """Install what is missing and build the pages, as `up` does; start nothing.

    For images, and for machines that will have no network. With CANOPY_AMQP_URL no broker is
    installed.
    """
    home = homes.read()
    home.make()
    launcher.prepare([Model(argument) for argument in model], home)
