"""`tree`, `log`, `attach`, `drain`, `resume`: the registry, and the tree while it runs."""

import asyncio
import json
import os
import time
from collections.abc import Coroutine, Mapping
from datetime import timedelta
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree as Drawing

from broker import inspect
from broker.management import ManagementError
from broker.nodestates import warnings_of_clocks
from broker.session import BrokerError
from broker.tree import tree as describe
from broker.wire import AnyControl, Attach, Drain, Resume
from cli import home, instance
from cli.errors import CliError
from topology.tree import BadEdge, check_attach

_COLOURS = {
    "idle": "green",
    "busy": "yellow",
    "starting": "cyan",
    "draining": "magenta",
    "drained": "magenta",
}
_LOG_FIELDS = (
    "name", "state", "host", "pid", "parent", "children", "model", "engine", "device", "policy", "slots", "running",
    "queued", "held", "depth", "received", "finished", "tokens", "waited",
    "wait_error", "prompt_tokens", "reused_tokens", "uptime", "clock_difference", "detail", "warning",
)  # fmt: skip

Node = Mapping[str, Any]
T = TypeVar("T")
NodeName = Annotated[
    str, typer.Argument(metavar="NAME", help="A node's name, as ./canopy tree shows it.")
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    for command in (tree, log, attach, drain, resume):
        app.command()(command)


def tree(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Draw the tree of nodes with their states."""
    seen = _look()
    if as_json:
        print(json.dumps(seen))
        return
    nodes = {node["name"]: node for node in seen["nodes"]}
    tops = [node for node in seen["nodes"] if node["parent"] not in nodes]
    if not tops:
        print("No node is registered.")
    for top in tops:
        Console(highlight=False).print(_draw(top, nodes, Drawing(_line(top), guide_style="dim")))


def log(
    name: NodeName,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Print one node's state."""
    node = _find(_look(), name)
    if as_json:
        print(json.dumps(node))
        return
    for field in _LOG_FIELDS:
        print(f"{field:<9} {_plain(_readable(field, node[field]))}")


def attach(
    name: NodeName,
    parent: Annotated[str, typer.Option(metavar="P", help="The node to hang NAME below.")],
) -> None:
    """Hang a node, with all below it, under another parent while it runs."""
    seen = _look()
    node = _find(seen, name)
    model = _find(seen, parent)["model"]
    if node["engine"] == "none":
        raise CliError(f"{name!r} is a root; only nodes below a root can be moved")
    if model != node["model"]:
        raise CliError(
            f"{parent!r} serves {model}, and {name!r} {node['model']}: a tree has one model"
        )
    try:
        check_attach(
            {each["name"]: each["parent"] for each in seen["nodes"] if each["parent"]}, name, parent
        )
    except BadEdge as error:
        raise CliError(str(error)) from error
    _tell(name, Attach(parent=parent))
    print(f"{name} hangs below {parent}")


def drain(name: NodeName) -> None:
    """Let a node finish what it runs and hand it, and all below it, nothing new."""
    _tell(name, Drain())
    print(f"{name} drains; ./canopy resume {name} lets it take jobs again")


def resume(name: NodeName) -> None:
    """Let a drained node take jobs again."""
    _tell(name, Resume())
    print(f"{name} takes jobs")


def _look() -> dict[str, Any]:
    amqp_url, management_url = broker_addresses()
    if not management_url:
        raise CliError("The tree is read from RabbitMQ's management API; set CANOPY_MANAGEMENT_URL")
    seen = _run(inspect.look(amqp_url, management_url))
    return describe(seen.edges, seen.states, seen.depths, time.time(), seen.clock_differences)


def problems() -> list[str]:
    """What an operator should look at in the tree, a line each; nothing where it cannot be read."""
    try:
        seen = _look()
    except CliError:
        return []
    return [
        f"{_plain(node['name'])}: {_plain(_warning(node))}"
        for node in seen["nodes"]
        if _warning(node)
    ]


def _tell(node: str, message: AnyControl) -> None:
    _run(inspect.tell(broker_addresses()[0], node, message))


def broker_addresses() -> tuple[str, str]:
    """The broker of the environment, else that of the instance that runs here."""
    if amqp_url := os.environ.get("CANOPY_AMQP_URL"):
        return amqp_url, os.environ.get("CANOPY_MANAGEMENT_URL", "")
    record = instance.running(home.read())
    return record["amqp"]["admin"], record["management"]


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except (BrokerError, ManagementError, inspect.NoSuchNode) as error:
        raise CliError(str(error)) from error


def _find(seen: Mapping[str, Any], name: str) -> Node:
    for node in seen["nodes"]:
        if node["name"] == name:
            found: Node = node
            return found
    raise CliError(f"no node named {name!r} is registered (./canopy tree lists them)")


def _draw(node: Node, nodes: Mapping[str, Node], drawing: Drawing) -> Drawing:
    for child in node["children"]:
        _draw(nodes[child], nodes, drawing.add(_line(nodes[child])))
    return drawing


def _plain(text: object) -> str:
    """Text without control characters: most of it comes from other machines, and goes to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def _shown(text: object) -> str:
    """The same, and not read as markup."""
    return escape(_plain(text))


def _warning(node: Node) -> str:
    """What an operator should look at, the node's clock included."""
    clocks = warnings_of_clocks({node["name"]: node["clock_difference"] or 0.0})
    return "; ".join([*clocks, *filter(None, [node["warning"]])])


def _line(node: Node) -> str:
    """One node as a line: name, state, load, where it runs."""
    state = node["state"]
    colour = _COLOURS.get(state, "red")
    if node["engine"] == "none":
        load = f"entrance of {_shown(node['model'])}"
    else:
        load = f"{node['running']}/{node['slots']} running  {_shown(node['model'])} ({_shown(node['engine'])})"
    where = f"  [dim]{_shown(node['host'])}:{node['pid']}[/dim]" if node["host"] else ""
    queued = f"  {node['queued']} queued" if node["queued"] else ""
    if node["queued"] and node["waited"]:
        queued += f", {node['waited']:.0f} s each lately"
    detail = f"  {_shown(node['detail'])}" if node["detail"] else ""
    warning = _warning(node)
    if warning:
        detail += f"  [red]{_shown(warning)}[/red]"
    return f"[bold]{_shown(node['name'])}[/bold]  [{colour}]{state}[/{colour}]  {load}{queued}{where}{detail}"


def _readable(field: str, value: object) -> str:
    if field == "uptime" and isinstance(value, float):
        return str(timedelta(seconds=round(value)))
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value in (None, "") else str(value)
