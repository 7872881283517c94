"""`tree`, `log`: reads the tree while it runs."""

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import click

from cli import colours, options, registry
from cli.colours import paint
from cli.registry import Node, printable
from topology.version import VERSION

_LOG_FIELDS = (
    "name",
    "state",
    "shown",
    "blocked_by",
    "usable",
    "host",
    "pid",
    "parent",
    "children",
    "model",
    "engine",
    "version",
    "device",
    "memory",
    "memory_total",
    "memory_free",
    "precision",
    "weights",
    "cache",
    "policy",
    "slots",
    "running",
    "queued",
    "held",
    "depth",
    "received",
    "finished",
    "failed",
    "tokens",
    "waited",
    "oldest_wait",
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
    coloured = colours.are_shown()
    for top in tops:
        for line in draw(top, nodes, coloured=coloured):
            print(line)
    for line in troubles(seen["summary"]):
        print(paint(printable(line), colours.RED, coloured))


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
    if node.get("log_file"):
        print(f"log_file  {printable(node['log_file'])}")


# ---- nodes as lines

_WHY = {
    "drained": "drained: {names}; ./canopy resume {first}",
    "failed": "their engines have failed: {names}; ./canopy restart {first}",
    "gone": "gone or silent: {names}; start them again",
    "root_gone": "the entrance {names} is gone or silent; start it again",
    "no_nodes": "no node hangs below the entrance; ./canopy node adds one",
}


def troubles(summary: Mapping[str, Any]) -> Iterator[str]:
    """A line for each tree that cannot run what waits, or anything: why, and what mends it."""
    for part in summary["trees"]:
        blockers = part["blockers"]
        why = _WHY.get(part["reason"], "")
        why = why.format(names=", ".join(blockers), first=(blockers or [""])[0])
        name = part["model"] or part["root"]
        if part["state"] == "stuck":
            rest = ""
            if part["gone"] == part["nodes"]:
                rest = f"; if it was ended, ./canopy remove {part['root']} ends its jobs, too"
            yield f"{name}: {part['waiting']} waiting, and none can start: {why}{rest}"
        elif part["state"] == "empty":
            yield f"{name}: no slot can take a job: {why}"
        elif part["state"] == "gone":
            rest = f"if it was ended, ./canopy remove {part['root']} forgets it"
            yield f"{name}: no process of its tree runs, and nothing waits for it: {why}; {rest}"


def draw(node: Node, nodes: Mapping[str, Node], *, coloured: bool) -> Iterator[str]:
    """The node and all below it, a line each, indented by depth."""
    yield node_line(node, coloured=coloured)
    children = node["children"]
    for child in children:
        branch, indent = "├── ", "│   "
        if child == children[-1]:
            branch, indent = "└── ", "    "
        for line in draw(nodes[child], nodes, coloured=coloured):
            yield paint(branch, colours.DIM, coloured) + line
            branch = indent


def node_line(node: Node, *, coloured: bool) -> str:
    """One node: name, state, load, where it runs, and what is wrong with it."""
    shown = node["shown"]
    parts = [
        paint(printable(node["name"]), colours.BOLD, coloured),
        paint(_shown(node), colours.of_state(shown), coloured),
        _load(node),
    ]
    if node["host"]:
        parts.append(paint(f"{printable(node['host'])}:{node['pid']}", colours.DIM, coloured))
    if node["version"] not in ("", VERSION):
        parts.append(f"release {printable(node['version'])}")
    if node["detail"]:
        parts.append(printable(node["detail"]))
    warning = registry.warning(node)
    if warning:
        parts.append(paint(printable(warning), colours.RED, coloured))
    return "  ".join(parts)


def _shown(node: Node) -> str:
    shown: str = node["shown"].replace("_", " ")
    if shown == "starting" and node["loaded"] is not None:
        return f"starting {node['loaded']:.0%}"
    return shown


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


def _readable(field: str, value: object) -> str:
    if field == "uptime" and isinstance(value, float):
        return str(timedelta(seconds=round(value)))
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if value in (None, ""):
        return "-"
    return str(value)
