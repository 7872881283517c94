"""`restart --rolling`: asks the running launcher to replace its processes, and shows how that goes."""

import json
from typing import Annotated

import typer

from cli import control, instance
from cli import home as homes
from cli.errors import CliError


def add_to(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(restart)


def restart(
    rolling: Annotated[
        bool, typer.Option("--rolling", help="One after the other, while the others serve.")
    ] = False,
    with_broker: Annotated[
        bool,
        typer.Option(
            "--with-broker", help="The broker too, at the end: new requests wait meanwhile."
        ),
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            min=0, max=86_400, help="Seconds that open requests get in the API process that leaves."
        ),
    ] = 60.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a line, for programs.")
    ] = False,
) -> None:
    """Replace every process of the running instance, one after the other, without a failed request."""
    if not rolling:
        raise CliError(
            "Say --rolling; or stop and start everything: ./canopy down, then ./canopy up", code=2
        )
    home = homes.read()
    instance.running(home)
    last: control.Message = {}
    for last in control.ask(home, {"with_broker": with_broker, "grace": grace}):
        if as_json:
            print(json.dumps(last), flush=True)
        else:
            _show(last)
    if last.get("event") == "failed":
        raise CliError(f"{last['error']} Nothing after it was touched.")
    if last.get("event") != "done":
        raise CliError("The launcher ended before everything was replaced.")
    if not with_broker and not as_json:
        print("The broker was left alone; --with-broker restarts it, too.")


def _show(message: control.Message) -> None:
    match message["event"]:
        case "begin":
            print(f"  {message['name']:<18} {message['pid']:>8} -> ", end="", flush=True)
        case "replaced":
            print(f"{message['new']:<8} {message['seconds']:.1f} s", flush=True)
        case "failed":
            print("failed", flush=True)
        case "done":
            print(
                f"replaced {message['processes']} processes in {message['seconds']:.1f} s",
                flush=True,
            )
