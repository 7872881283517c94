"""`restart NODE`, and `restart --rolling`: asks the launcher to replace all its processes."""

import json

import click

from cli import control, instance, options
from cli import home as homes
from cli.commands import act
from cli.errors import ProcessError, UnreachableError, UsageError


@click.command()
@click.argument("node", required=False)
@click.option("--subtree", is_flag=True, help="NODE with all below it, from the leaves up.")
@click.option("--preview", is_flag=True, help="Say what the restart of NODE would do.")
@click.option("--rolling", is_flag=True, help="All processes, while the others serve.")
@click.option(
    "--with-broker", is_flag=True, help="The broker too, at the end; new requests wait for it."
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 86_400),
    default=60.0,
    show_default=True,
    help="Seconds an API process gets to finish its open requests.",
)
@options.as_json
def restart(
    node: str | None,
    subtree: bool,
    preview: bool,
    rolling: bool,
    with_broker: bool,
    grace: float,
    as_json: bool,
) -> None:
    """Replace one node, or every process in turn, without a failed request.

    NODE gives running jobs 3 seconds, hands them to its parent, and begins again under its name.
    """
    if (node is None) != rolling:
        raise UsageError("Name a node, or say --rolling; or use ./canopy down, then ./canopy up")
    if node is not None:
        act.restart_node(node, subtree, preview, as_json)
        return
    home = homes.read()
    instance.running(home)
    last: control.Message = {}
    request = {"command": "restart", "with_broker": with_broker, "grace": grace}
    for last in control.request(home, request):
        if as_json:
            print(json.dumps(last), flush=True)
        else:
            _show(last)
    if last.get("event") == "failed":
        raise ProcessError(f"{last['error']} The processes after it were not replaced.")
    if last.get("event") != "done":
        raise UnreachableError("The launcher ended before everything was replaced.")
    if not with_broker and not as_json:
        print("The broker still runs as before; --with-broker restarts it too.")


def _show(message: control.Message) -> None:
    match message["event"]:
        case "begin":
            print(f"  {message['name']:<18} {message['pid']:>8} -> ", end="", flush=True)
        case "replaced":
            print(f"{message['new']:<8} {message['seconds']:.1f} s", flush=True)
        case "failed":
            print("failed", flush=True)
        case "done":
            summary = f"replaced {message['processes']} processes in {message['seconds']:.1f} s"
            print(summary, flush=True)
