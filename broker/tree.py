"""The tree as people and scripts see it: the broker's bindings and the nodes' own states."""

from collections import defaultdict, deque
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
    """The whole tree, roots first, parents before their children.

    `depths`: jobs ready, by queue. `now`: Unix seconds. `clock_differences`: seconds by which
    nodes' clocks are ahead of this machine's, where known. The bindings decide the edges; a node's
    own state decides the rest, as long as its inbox exists.
    """
    children = _children(edges)
    roots = sorted(edges.roots, key=lambda name: (name != "root", natural_key(name)))
    all_nodes = {
        *edges.roots,
        *edges.parents,
        *edges.parents.values(),
        *edges.registered,
        *edges.present,
        *states,
    }
    hanging = list(_walk(roots, children))
    detached = sorted(all_nodes - set(hanging), key=natural_key)
    models = _inherited_models(edges, children)
    nodes = []
    for name in [*hanging, *detached]:
        model = models.get(name, "")
        node = _node(name, edges, children[name], states.get(name), depths, model, now)
        node["clock_difference"] = clock_differences.get(name)
        nodes.append(node)
    return {
        "roots": roots,
        "nodes": nodes,
        "at": datetime.fromtimestamp(now, UTC).isoformat(),
    }


def settled(tree: Tree) -> Tree:
    """The tree without what changes with time alone, to see whether anything happened."""
    nodes = []
    for node in tree["nodes"]:
        timeless = dict(node)
        for key in ("uptime", "seen", "clock_difference"):
            timeless.pop(key, None)
        nodes.append(timeless)
    return {"roots": tree["roots"], "nodes": nodes}


def _children(edges: Edges) -> defaultdict[str, list[str]]:
    children: defaultdict[str, list[str]] = defaultdict(list)
    for child in sorted(edges.parents, key=natural_key):
        children[edges.parents[child]].append(child)
    return children


def _walk(roots: list[str], children: Mapping[str, list[str]]) -> Iterator[str]:
    """Breadth first, each node once: a tree under repair may have a loop."""
    queue = deque(roots)
    seen: set[str] = set()
    while queue:
        name = queue.popleft()
        if name not in seen:
            seen.add(name)
            yield name
            queue.extend(children.get(name, ()))


def _inherited_models(edges: Edges, children: Mapping[str, list[str]]) -> dict[str, str]:
    models: dict[str, str] = {}
    for root, model in edges.roots.items():
        models.update(dict.fromkeys(_walk([root], children), model))
    return models


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
        detail = "gone; jobs for it wait in its queue"
        if name in edges.present:
            detail = "no state received yet"
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
