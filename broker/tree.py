"""The tree as people and scripts see it: the broker's bindings, and what each node says of itself."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from broker.management import Edges
from broker.wire import NodeState
from topology import names
from topology.dispatch import natural_key

Tree = dict[str, Any]


def tree(
    edges: Edges,
    states: Mapping[str, NodeState],
    depths: Mapping[str, int],
    now: float,
    clock_differences: Mapping[str, float] = MappingProxyType({}),
) -> Tree:
    """The whole tree, roots first, parents before their children. `depths`: by queue. `now`: Unix seconds.
    `clock_differences`: seconds by which nodes' clocks are ahead of this machine's, as far as they are known.

    The bindings decide who hangs where; a node's own word decides the rest, as long as its inbox exists.
    """
    children = _children(edges)
    roots = sorted(edges.roots, key=lambda name: (name != "root", natural_key(name)))
    everybody = {
        *edges.roots,
        *edges.parents,
        *edges.parents.values(),
        *edges.registered,
        *edges.present,
        *states,
    }
    hanging = list(_walk(roots, children))
    loose = sorted(everybody - set(hanging), key=natural_key)
    model_of = _inherited_models(edges, children)
    return {
        "roots": roots,
        "nodes": [
            {
                **_node(
                    name,
                    edges,
                    children[name],
                    states.get(name),
                    depths,
                    model_of.get(name, ""),
                    now,
                ),
                "clock_difference": clock_differences.get(name),
            }
            for name in [*hanging, *loose]
        ],
        "at": datetime.fromtimestamp(now, UTC).isoformat(),
    }


def settled(tree: Tree) -> Tree:
    """The tree without what changes by the mere passing of time: to see whether anything happened."""
    clocks = ("uptime", "seen", "clock_difference")
    nodes = [
        {key: value for key, value in node.items() if key not in clocks} for node in tree["nodes"]
    ]
    return {"roots": tree["roots"], "nodes": nodes}


def _children(edges: Edges) -> defaultdict[str, list[str]]:
    children: defaultdict[str, list[str]] = defaultdict(list)
    for child in sorted(edges.parents, key=natural_key):
        children[edges.parents[child]].append(child)
    return children


def _walk(roots: list[str], children: Mapping[str, list[str]]) -> Iterator[str]:
    """Breadth first, each node once (a tree in repair may have a loop)."""
    seen: set[str] = set()
    level = roots
    while level:
        fresh = [name for name in dict.fromkeys(level) if name not in seen]
        yield from fresh
        seen.update(fresh)
        level = [child for name in fresh for child in children.get(name, ())]


def _inherited_models(edges: Edges, children: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: model for root, model in edges.roots.items() for name in _walk([root], children)}


def _state(name: str, edges: Edges, state: NodeState | None) -> str:
    if name not in edges.present or (state is not None and state.status == "stopped"):
        return "down"
    return "starting" if state is None else state.status


def _node(
    name: str,
    edges: Edges,
    children: list[str],
    state: NodeState | None,
    depths: Mapping[str, int],
    model: str,
    now: float,
) -> dict[str, Any]:
    depth = depths.get(names.node(name), 0)
    shared = {
        "name": name,
        "parent": edges.parents.get(name),
        "children": children,
        "state": _state(name, edges, state),
        "depth": depth,
    }
    if state is None:
        detail = "not heard yet" if name in edges.present else "gone; jobs for it wait in its queue"
        return {**_UNKNOWN, **shared, "model": model, "queued": depth, "detail": detail}
    return {
        **shared,
        "model": state.model or model,
        "engine": state.engine,
        "device": state.device,
        "policy": state.policy,
        "slots": state.slots,
        "running": state.running,
        "held": state.held,
        "queued": state.held + depth,
        "received": state.received,
        "finished": state.finished,
        "tokens": state.tokens,
        "host": state.host,
        "pid": state.pid,
        "detail": state.detail,
        "warning": state.warning,
        "waited": round(state.waited, 2),
        "wait_error": round(state.wait_error, 2),
        "prompt_tokens": state.prompt_tokens,
        "reused_tokens": state.reused_tokens,
        "uptime": max(0.0, round(now - state.started, 1)),
        "seen": max(0.0, round(now - state.sent, 1)),
    }


_UNKNOWN: dict[str, Any] = {
    "engine": "",
    "device": "",
    "policy": "",
    "slots": 0,
    "running": 0,
    "held": 0,
    "received": 0,
    "finished": 0,
    "tokens": 0,
    "host": "",
    "pid": 0,
    "warning": "",
    "waited": 0.0,
    "wait_error": 0.0,
    "prompt_tokens": 0,
    "reused_tokens": 0,
    "uptime": None,
    "seen": None,
}
