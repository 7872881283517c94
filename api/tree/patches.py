"""What is different in a tree, so that a page need not be sent the whole one again. Pure."""

from typing import Any

from broker.tree import Tree

# These change all the time. They are sent with a node's other changes; readers go on counting.
TIMED = frozenset({"uptime", "seen", "clock_difference", "oldest_wait", "memory"})

Patch = dict[str, Any]


def difference(former: Tree, latest: Tree) -> Patch:
    """What a reader of `former` needs to know of `latest`.

    `nodes`: by name, the fields that changed (all of a new node). `order`: the names of all nodes,
    if these or their order changed. `roots`, `summary`: if they changed. `at` always.
    """
    known = {node["name"]: node for node in former["nodes"]}
    changed = {}
    for node in latest["nodes"]:
        fields = _changed_fields(known.get(node["name"]), node)
        if fields:
            changed[node["name"]] = fields
    patch: Patch = {"at": latest["at"]}
    if changed:
        patch["nodes"] = changed
    order = [node["name"] for node in latest["nodes"]]
    if order != list(known):
        patch["order"] = order
    if former["roots"] != latest["roots"]:
        patch["roots"] = latest["roots"]
    if _timeless(former["summary"]) != _timeless(latest["summary"]):
        patch["summary"] = latest["summary"]
    return patch


def is_empty(patch: Patch) -> bool:
    """True if nothing but the time is different."""
    return patch.keys() == {"at"}


def _changed_fields(former: dict[str, Any] | None, node: dict[str, Any]) -> dict[str, Any]:
    if former is None:
        return node
    fields = {}
    for key, value in node.items():
        if key not in TIMED and former.get(key) != value:
            fields[key] = value
    if fields:
        fields.update({key: node[key] for key in TIMED})
    return fields


def _timeless(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The sums, with waits in whole seconds: a page shows how they grow."""
    parts = []
    for part in (summary["total"], *summary["trees"]):
        parts.append({**part, "oldest_wait": int(part["oldest_wait"])})
    return parts
