"""`usage`: who has used how much, read by the API's own program, running or not."""

import click

from cli import home as homes
from cli import options
from cli.errors import UsageError
from cli.home import become_module


@click.command()
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["day", "user", "key", "model"]),
    help="May be repeated.  [default: user]",
)
@click.option("--days", type=click.IntRange(1, 400), default=30, show_default=True)
@click.option("--user", help="One user's alone.")
@options.as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
def usage(by: tuple[str, ...], days: int, user: str | None, as_json: bool, as_csv: bool) -> None:
    """Show requests and tokens by user, key, model and day.

    Days are UTC and kept for 400; the last ten seconds of a running instance may be missing.
    """
    if as_json and as_csv:
        raise UsageError("Say --json or --csv, not both.")
    words = ["--days", str(days)]
    for name in by:
        words += ["--by", name]
    if user:
        words += ["--user", user]
    if as_json:
        words.append("--json")
    if as_csv:
        words.append("--csv")
    become_module("api", "usage", *words, CANOPY_HOME=str(homes.read().path))
