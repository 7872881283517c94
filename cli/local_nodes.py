"""Nodes that run on this machine beside no instance: `node` and `join` start them.

They answer for themselves over Unix sockets in CANOPY_HOME (`worker/local_control.py`), whatever
their broker's users may do there. Standard library only: `status` reads them.
"""

import contextlib
import json
import os
import socket
from typing import Any, NamedTuple

from cli.errors import StateError
from cli.home import Home

_SECONDS = 3.0  # for an answer
_SUFFIX = ".sock"


class LocalNode(NamedTuple):
    """`state`: the fields of a broker.node_state.NodeState; `log`: its file, "" without one;
    `connected`: whether it reaches the broker.
    """

    name: str
    state: dict[str, Any]
    log: str
    connected: bool


def running(home: Home) -> list[LocalNode]:
    """Those that answer, by name."""
    with contextlib.suppress(OSError):
        names = sorted(entry.name for entry in home.nodes.iterdir())
        answers = [_answer_of(home, name) for name in names if name.endswith(_SUFFIX)]
        return [answer for answer in answers if answer is not None]
    return []


def send(home: Home, name: str, command: str) -> None:
    """Has the node of that name do it: drain, resume, restart, stop. Raises StateError."""
    try:
        _request(home, f"{name}{_SUFFIX}", command)
    except (OSError, ValueError) as error:
        raise StateError(f"no node {name!r} runs on this machine (./canopy status)") from error


def _answer_of(home: Home, file: str) -> LocalNode | None:
    """None for a socket that a dead process left, or a node of another release."""
    try:
        answer = _request(home, file, "state")
        state = answer["state"]
        return LocalNode(state["name"], state, answer["log"], answer["connected"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _request(home: Home, file: str, command: str) -> dict[str, Any]:
    """Raises OSError, ValueError."""
    # the path of a Unix socket has at most 107 bytes, so it leads through the open folder
    folder = os.open(home.nodes, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(f"/proc/self/fd/{folder}/{file}")
            connection.sendall(json.dumps({"command": command}).encode() + b"\n")
            with connection.makefile() as lines:
                answer = json.loads(lines.readline())
    finally:
        os.close(folder)
    if not isinstance(answer, dict):
        raise ValueError("not an object")
    return answer
