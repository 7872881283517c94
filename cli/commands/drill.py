"""`drill`: by the API's program, which counts and records what is done."""

import click

from cli import options
from cli.commands.host import become_operator
from cli.errors import UsageError


@click.command()
@click.argument("node", required=False)
@click.option("--preview", is_flag=True, help="Say what it would hit, and do nothing.")
@click.option(
    "--seconds",
    type=click.IntRange(5, 600),
    default=120,
    show_default=True,
    help="After these, jobs that have not gone on count as lost.",
)
@options.as_json
def drill(node: str | None, preview: bool, seconds: int, as_json: bool) -> None:
    """Kill a node on purpose, and count what becomes of its jobs.

    Its process is killed at once, as by a crash, and started again. The result says how many jobs
    were affected, how many went on at another node, how many were lost (none should be), how long
    the slowest waited for its next token, and when the node was back. Without NODE, the latest
    drills are listed.

    Only where the host allows it: CANOPY_DRILLS=1 ./canopy up (or agent).
    """
    if node is None and preview:
        raise UsageError("Say which node: ./canopy drill NODE --preview")
    words = ["--seconds", str(seconds)]
    if preview:
        words.append("--preview")
    if node is not None:
        words.append(node)
    become_operator("drill", words, as_json)
