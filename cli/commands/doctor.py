"""`doctor`, where the command line is started without the `canopy` script."""

import click

from cli.prepare import doctor as examination


@click.command()
def doctor() -> None:
    """List what this machine lacks, each with its remedy."""
    raise click.exceptions.Exit(examination.main())
