"""What the tree's figures mean to an operator: each node's state as shown, and each tree's sums.

Pure functions over the nodes of `broker.tree`. A slot is *usable* if a job that waits at the root
could get it: its node serves, and so does every node above.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from topology.natural import natural_key
from topology.tree import ancestors

FROZEN_SECONDS = 6.0  # without a state from a connected node, which publishes one every 2 s

Node = dict[str, Any]
Summary = dict[str, Any]
Shown = Literal[
    "starting",
    "idle",
    "busy",
    "holding",  # it keeps jobs that wait
    "draining",
    "drained",
    "below_draining",
    "cut_off",  # no way leads to it, other than because a node above drains
    "unhealthy",
    "frozen",
    "lost",  # registered, and silent for long
    "gone",
]
_DRAINS = ("draining", "drained")
_SERVES = ("idle", "busy")


def annotate(nodes: Iterable[Node], roots: Iterable[str]) -> None:
    """Adds `shown`, `blocked_by`, `root` and `usable` to every node.

    `blocked_by`: the nearest node above that lets no jobs pass; None if there is none. `root`: the
    entrance of its tree; None for a node that hangs below no root.
    """
    by_name = {node["name"]: node for node in nodes}
    parents = {name: node["parent"] for name, node in by_name.items() if node["parent"]}
    entrances = set(roots)
    for name, node in by_name.items():
        above = list(ancestors(parents, name))
        if name in entrances:
            above = []
        top = above[-1] if above else name
        node["root"] = top if top in entrances else None
        node["blocked_by"] = _blocker(above, by_name, node["root"])
        node["shown"] = _shown(node, by_name)
        node["usable"] = 0
        if node["blocked_by"] is None and node["state"] in _SERVES and not is_frozen(node):
            node["usable"] = node["slots"]


def is_frozen(node: Node) -> bool:
    """True if the node is connected and silent: its process is stopped, or very busy."""
    if node["state"] == "down" or node["seen"] is None:
        return False
    silent: bool = node["seen"] > FROZEN_SECONDS
    return silent


def _blocker(above: list[str], by_name: Mapping[str, Node], root: str | None) -> str | None:
    """The nearest of the nodes above that lets nothing pass. A failed engine forwards all the same.

    Where the way up is broken, the first name that is missing.
    """
    for name in above:
        node = by_name.get(name)
        if node is None or is_frozen(node):
            return name
        if node["state"] in ("down", "lost", "starting", *_DRAINS):
            return name
    if root is None:
        return above[-1] if above else ""
    return None


def _shown(node: Node, by_name: Mapping[str, Node]) -> Shown:
    state = node["state"]
    shown: Shown = "idle"
    if state == "down":
        shown = "gone"
    elif is_frozen(node):
        shown = "frozen"
    elif state == "failed":
        shown = "unhealthy"
    elif state in ("starting", "lost", *_DRAINS):
        shown = state
    elif node["blocked_by"] is not None:
        shown = _shown_below(by_name.get(node["blocked_by"]))
    elif node["warning"]:
        shown = "unhealthy"
    elif node["queued"] > 0:
        shown = "holding"
    elif state == "busy":
        shown = "busy"
    return shown


def _shown_below(blocker: Node | None) -> Shown:
    if blocker is not None and blocker["state"] in _DRAINS:
        return "below_draining"
    return "cut_off"


# ---- sums


def summarise(nodes: Iterable[Node], roots: Iterable[str]) -> Summary:
    """`trees`: one summary a root. `total`: of all nodes, with the worst of the trees' states."""
    listed = list(nodes)
    trees = []
    for root in roots:
        members = [node for node in listed if node["root"] == root]
        trees.append({"root": root, "model": _model(members, root), **_sums(members)})
    total = _sums(listed)
    total["state"] = max((tree["state"] for tree in trees), key=_RANKS.index, default="empty")
    return {"total": total, "trees": trees}


# From the best to the worst. `gone`: no process of the tree lives, whether it was ended or died,
# and no job waits; `stuck`: jobs wait, and none of them can start.
_RANKS = ("idle", "working", "waiting", "starting", "gone", "empty", "stuck")


def _sums(nodes: list[Node]) -> Summary:
    usable = sum(node["usable"] for node in nodes)
    waiting = sum(node["queued"] for node in nodes)
    running = sum(node["running"] for node in nodes if node["state"] != "down")
    state = _tree_state(nodes, waiting, running, usable)
    reason = ""
    blockers: list[str] = []
    if usable == 0:
        reason, blockers = _why_unusable(nodes)
    return {
        "nodes": len(nodes),
        "gone": sum(node["shown"] == "gone" for node in nodes),
        "unhealthy": sum(node["shown"] in ("unhealthy", "frozen", "lost") for node in nodes),
        "waiting": waiting,
        "running": running,
        "slots": sum(node["slots"] for node in nodes if node["state"] != "down"),
        "usable": usable,
        "in_use": sum(min(node["running"], node["usable"]) for node in nodes),
        "oldest_wait": max((oldest_wait(node) for node in nodes), default=0.0),
        "state": state,
        "reason": reason,
        "blockers": blockers,
        "resume": [name for name in blockers if reason == "drained"],
    }


def oldest_wait(node: Node) -> float:
    """Seconds that the first of the jobs at this node has waited, now."""
    if node["held"] == 0:
        return 0.0
    waited: float = round(node["oldest_wait"] + (node["seen"] or 0.0), 1)
    return waited


def _model(members: list[Node], root: str) -> str:
    for node in members:
        if node["name"] == root:
            return str(node["model"])
    return ""


def _tree_state(nodes: list[Node], waiting: int, running: int, usable: int) -> str:
    if nodes and not waiting and all(node["state"] == "down" for node in nodes):
        return "gone"
    if usable == 0 and any(node["state"] == "starting" for node in nodes):
        return "starting"
    if usable == 0:
        return "stuck" if waiting else "empty"
    if waiting:
        return "waiting"
    return "working" if running else "idle"


def _why_unusable(nodes: list[Node]) -> tuple[str, list[str]]:
    """Why no slot of these nodes is usable, and which nodes are to blame, the mendable first."""
    entrances = [node for node in nodes if node["root"] == node["name"]]
    gone_roots = [node for node in entrances if node["shown"] in ("gone", "frozen", "lost")]
    if gone_roots:
        return "root_gone", _names(gone_roots)
    drained = [node for node in nodes if node["state"] in _DRAINS and not node["blocked_by"]]
    if drained:
        return "drained", _names(drained)
    failed = [node for node in nodes if node["state"] == "failed"]
    if failed:
        return "failed", _names(failed)
    lost = [node for node in nodes if node["shown"] in ("gone", "frozen", "lost")]
    if lost:
        return "gone", _names(lost)
    return "no_nodes", []


def _names(nodes: list[Node]) -> list[str]:
    return sorted((node["name"] for node in nodes), key=natural_key)
