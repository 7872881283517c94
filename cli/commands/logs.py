"""`logs`: the last lines of this instance's processes, read by the API's own program."""

import click

from cli import home as homes
from cli import options
from cli.home import become_module


@click.command()
@click.argument("process", required=False, default="")
@click.option("--follow", "-f", is_flag=True, help="Go on as lines are written, until Ctrl-C.")
@click.option("--request", metavar="ID", default="", help="Only lines about this request.")
@click.option(
    "--level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    show_default=True,
    help="Only lines of this level, or worse.",
)
@click.option(
    "--lines", "-n", type=click.IntRange(1, 100_000), default=100, show_default=True, metavar="N"
)
@options.as_json
def logs(process: str, follow: bool, request: str, level: str, lines: int, as_json: bool) -> None:
    """Print the last lines of a process's log, or of all processes in the order of time.

    PROCESS is as in ./canopy status: api, root, n1, broker, up ... Only processes of this instance
    on this machine have their logs here, running or not. With --json each line is an object.
    """
    words = ["--level", level, "--lines", str(lines)]
    if process:
        words += ["--process", process]
    if request:
        words += ["--request", request]
    if follow:
        words.append("--follow")
    if as_json:
        words.append("--json")
    become_module("api", "logs", *words, CANOPY_HOME=str(homes.read().path))
