"""The tree of one moment with its rates, as `top --json` prints it and the screen shows it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from broker.management import Edges
from broker.node_state import NodeState
from broker.tree import edges_as_told
from broker.tree import tree as describe
from cli.top.rates import TokenRates

Figures = dict[str, Any]

_NODE_FIELDS = (
    "name",
    "parent",
    "model",
    "engine",
    "device",
    "state",
    "shown",
    "blocked_by",
    "slots",
    "usable",
    "running",
    "queued",
    "oldest_wait",
    "received",
    "finished",
    "failed",
    "tokens",
    "host",
    "pid",
    "detail",
    "warning",
)


def figures(
    states: Mapping[str, NodeState],
    depths: Mapping[str, int],
    rates: TokenRates,
    edges: Callable[[Mapping[str, NodeState]], Edges] = edges_as_told,
) -> Figures:
    """Nodes in the order of the tree, with their depth in it; trees and the total with their sums.

    `depths`: jobs ready, by queue. `edges`: from the states.
    """
    seen = describe(edges(states), states, depths, time.time())
    nodes = []
    levels: dict[str, int] = {}
    by_root: dict[str | None, float] = {}
    for node in in_tree_order(seen["nodes"], seen["roots"]):
        rate = rates.of(node["name"])
        by_root[node["root"]] = by_root.get(node["root"], 0.0) + rate
        levels[node["name"]] = levels.get(node["parent"] or "", -1) + 1
        shown = {field: node[field] for field in _NODE_FIELDS}
        nodes.append({**shown, "level": levels[node["name"]], "tokens_per_second": rate})
    trees = []
    for tree in seen["summary"]["trees"]:
        trees.append({**tree, "tokens_per_second": round(by_root.get(tree["root"], 0.0), 1)})
    total = {
        **seen["summary"]["total"],
        "tokens_per_second": round(sum(by_root.values()), 1),
    }
    return {"at": seen["at"], "total": total, "trees": trees, "nodes": nodes}


def in_tree_order(nodes: list[dict[str, Any]], roots: list[str]) -> list[dict[str, Any]]:
    """Each node before those below it, and these together; what hangs nowhere comes last."""
    by_name = {node["name"]: node for node in nodes}
    ordered: dict[str, dict[str, Any]] = {}
    left = [*reversed(list(by_name)), *reversed(roots)]
    while left:
        name = left.pop()
        if name in by_name and name not in ordered:
            ordered[name] = by_name[name]
            left += reversed(by_name[name]["children"])
    return list(ordered.values())
