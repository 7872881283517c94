"""`status`: the record of the instance that runs here, its processes and the tree's problems."""

import json
import time
from collections.abc import Iterable
from typing import Any

import click

from cli import control, instance, joining, local_nodes, lock, options, processes
from cli import home as homes
from cli.errors import UnreachableError
from cli.home import Home
from cli.local_nodes import LocalNode
from cli.processes import ProcessRecord

_ANSWER_SECONDS = 6.0


@click.command()
@options.as_json
def status(as_json: bool) -> None:
    """Show what runs here, and how to reach and extend it."""
    home = homes.read()
    record = instance.read(home)
    if as_json:
        print(json.dumps(_as_json(home, record), indent=1))
        return
    nodes = local_nodes.running(home)
    if record is not None:
        _print(home, record)
    elif _transition(home) or not nodes:
        print(_transition(home) or f"nothing runs here ({home.path}); start it with ./canopy up")
    if nodes:
        _print_nodes(nodes)


def _as_json(home: Home, record: instance.Record | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "home": str(home.path),
        "running": record is not None,
        "starting": record is None and bool(_transition(home)),
    }
    if record is None:
        return {**document, "url": None, "processes": [], "nodes": _nodes(home)}
    joins = joining.lines(record)
    return {
        **document,
        "pid": record["pid"],
        "started": record["started"],
        "url": record["url"],
        "address": record.get("address", record["url"]),
        "port": record["port"],
        "models": record["models"],
        "processes": _processes(home),
        "nodes": _nodes(home),
        "join": joins[0],
        "joins": joins,
    }


def _transition(home: Home) -> str:
    """A line about an instance that is starting or stopping; "" if there is none."""
    if not lock.is_held(home):
        return ""
    holder = lock.holder(home)
    if holder is None:
        return "starting or stopping"
    return f"starting or stopping (pid {holder.pid})"


def _print(home: Home, record: instance.Record) -> None:
    answers = _request_problems(home, record)
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["started"]))
    address, url = record.get("address", record["url"]), record["url"]
    here = f", on this machine {url}" if address != url else ""
    print(f"Canopy runs: {address}{here}  (since {since})")
    print(f"models: {', '.join(record['models'])}   state: {home.path}")
    for process in _processes(home):
        print(_process_line(process))
    for problem in _problems(answers):
        print(f"problem: {problem}")
    print("one more worker here:")
    for line in joining.local_lines(record):
        print(f"  {line}")
    print(f"on another machine: {joining.elsewhere(record)}")


def _print_nodes(nodes: list[LocalNode]) -> None:
    """Nodes that `node` or `join` started on this machine."""
    print("nodes of trees elsewhere, or added to this one:")
    for node in nodes:
        state = node.state
        shown = state["status"] if node.connected else "not connected to its broker"
        print(
            f"  {node.name:<14} pid {state['pid']:<8} {shown}   "
            f"{state['running']}/{state['slots']} running  {state['model']} ({state['engine']})  "
            f"below {state['parent'] or '-'}"
        )
        if state["detail"]:
            print(f"  {'':<14} {state['detail']}")
        if node.log:
            print(f"  {'':<14} log: {node.log}")


def _nodes(home: Home) -> list[dict[str, Any]]:
    return [
        {**node.state, "log": node.log, "connected": node.connected}
        for node in local_nodes.running(home)
    ]


def _request_problems(home: Home, record: instance.Record) -> Iterable[control.Message]:
    """Has the launcher read the tree: importing what reads it takes longer than `status` may take
    in all.
    """
    if "problems" not in record.get("commands", []):
        older = "it was started by an older version: restart it to see what is wrong in the tree"
        return [{"problems": [older]}]
    try:
        return control.request(home, {"command": "problems"}, _ANSWER_SECONDS)
    except UnreachableError as error:
        return [{"problems": [str(error)]}]


def _problems(answers: Iterable[control.Message]) -> list[str]:
    problems: list[str] = []
    try:
        for answer in answers:
            problems += answer["problems"]
    except UnreachableError as error:
        problems.append(str(error))
    return problems


def _process_line(process: dict[str, Any]) -> str:
    details = []
    if process["running"]:
        details.append(f"pid {process['pid']:<8} {process['memory_mb']:>6.0f} MB")
    if process["state"] != "running":
        details.append(process["state"])
    return f"  {process['name']:<14} {'  '.join(details)}"


def _processes(home: Home) -> list[dict[str, Any]]:
    return [_describe(record) for record in processes.read(home)]


def _describe(record: ProcessRecord) -> dict[str, Any]:
    memory = record.memory()
    state = record.state
    if memory is None and state == "running":
        state = "not running"
    return {
        "name": record.name,
        "pid": record.pid,
        "running": memory is not None,
        "state": state,
        "memory_mb": round((memory or 0) / 1e6, 1),
    }
