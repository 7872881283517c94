"""`tree`, `log`, `attach`, `drain`, `resume`: reads and changes the tree while it runs."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta

import click

from broker.wire import Attach, Drain, Resume
from cli import options, registry
from cli.errors import StateError
from cli.registry import Node, printable
from topology.tree import BadEdge, check_attach

_GREEN, _YELLOW, _CYAN, _MAGENTA, _RED = "32", "33", "36", "35", "31"
_BOLD, _DIM = "1", "2"
_COLOURS = {
    "idle": _GREEN,
    "busy": _YELLOW,
    "starting": _CYAN,
    "draining": _MAGENTA,
    "drained": _MAGENTA,
}
_LOG_FIELDS = (
    "name",
    "state",
    "host",
    "pid",
    "parent",
    "children",
    "model",
    "engine",
    "device",
    "policy",
    "slots",
    "running",
    "queued",
    "held",
    "depth",
    "received",
    "finished",
    "tokens",
    "waited",
    "wait_error",
    "prompt_tokens",
    "reused_tokens",
    "uptime",
    "clock_difference",
    "detail",
    "warning",
)

_node_name = click.argument("name")


@click.command()
@options.as_json
def tree(as_json: bool) -> None:
    """Draw the tree of nodes."""
    seen = registry.read_tree()
    if as_json:
        print(json.dumps(seen))
        return
    nodes = {node["name"]: node for node in seen["nodes"]}
    tops = [node for node in seen["nodes"] if node["parent"] not in nodes]
    if not tops:
        print("No node is registered.")
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for top in tops:
        for line in draw(top, nodes, coloured=coloured):
            print(line)


@click.command()
@_node_name
@options.as_json
def log(name: str, as_json: bool) -> None:
    """Print one node's state."""
    node = registry.find(registry.read_tree(), name)
    if as_json:
        print(json.dumps(node))
        return
    for field in _LOG_FIELDS:
        print(f"{field:<9} {printable(_readable(field, node[field]))}")


@click.command()
@_node_name
@click.option("--parent", metavar="P", required=True, help="The node to hang NAME below.")
def attach(name: str, parent: str) -> None:
    """Move a running node, with all below it, under another parent."""
    seen = registry.read_tree()
    node = registry.find(seen, name)
    model = registry.find(seen, parent)["model"]
    if node["engine"] == "none":
        raise StateError(f"{name!r} is a root; only nodes below a root can be moved")
    if model != node["model"]:
        raise StateError(
            f"{parent!r} serves {model}, and {name!r} {node['model']}: a tree has one model"
        )
    parents = {node["name"]: node["parent"] for node in seen["nodes"] if node["parent"]}
    try:
        check_attach(parents, name, parent)
    except BadEdge as error:
        raise StateError(str(error)) from error
    registry.send(name, Attach(parent=parent))
    print(f"{name} moves below {parent}")


@click.command()
@_node_name
def drain(name: str) -> None:
    """Let a node finish its jobs; hand it and all below it nothing new."""
    registry.send(name, Drain())
    print(f"{name} drains; ./canopy resume {name} lets it take jobs again")


@click.command()
@_node_name
def resume(name: str) -> None:
    """Let a drained node take jobs again."""
    registry.send(name, Resume())
    print(f"{name} takes jobs")


# ---- nodes as lines


def draw(node: Node, nodes: Mapping[str, Node], *, coloured: bool) -> Iterator[str]:
    """The node and all below it, a line each, indented by depth."""
    yield node_line(node, coloured=coloured)
    children = node["children"]
    for child in children:
        branch, indent = ("└── ", "    ") if child == children[-1] else ("├── ", "│   ")
        for line in draw(nodes[child], nodes, coloured=coloured):
            yield _paint(branch, _DIM, coloured) + line
            branch = indent


def node_line(node: Node, *, coloured: bool) -> str:
    """One node: name, state, load, where it runs, and what is wrong with it."""
    state = node["state"]
    parts = [
        _paint(printable(node["name"]), _BOLD, coloured),
        _paint(state, _COLOURS.get(state, _RED), coloured),
        _load(node),
    ]
    if node["host"]:
        parts.append(_paint(f"{printable(node['host'])}:{node['pid']}", _DIM, coloured))
    if node["detail"]:
        parts.append(printable(node["detail"]))
    warning = registry.warning(node)
    if warning:
        parts.append(_paint(printable(warning), _RED, coloured))
    return "  ".join(parts)


def _load(node: Node) -> str:
    model = printable(node["model"])
    if node["engine"] == "none":
        text = f"entrance of {model}"
    else:
        engine = printable(node["engine"])
        text = f"{node['running']}/{node['slots']} running  {model} ({engine})"
    if node["queued"]:
        text += f"  {node['queued']} queued"
        if node["waited"]:
            text += f", waiting {node['waited']:.0f} s on average"
    return text


def _paint(text: str, code: str, coloured: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if coloured else text


def _readable(field: str, value: object) -> str:
    if field == "uptime" and isinstance(value, float):
        return str(timedelta(seconds=round(value)))
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if value in (None, ""):
        return "-"
    return str(value)
