"""`doctor`, where the command line is started without the `canopy` script."""

import typer

from cli.prepare import doctor as examination


def doctor() -> None:
    """List what this machine lacks, each with its remedy."""
    raise typer.Exit(examination.main())
