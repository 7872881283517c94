"""The tree as people and scripts see it: the broker's bindings and the nodes' own states."""

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from broker.management import Edges
from broker.node_state import NodeState
from broker.truth import annotate, summarise
from topology import names
from topology.natural import natural_key

Tree = dict[str, Any]


def tree(
    edges: Edges,
    states: Mapping[str, NodeState],
    depths: Mapping[str, int],
    now: float,
    clock_differences: Mapping[str, float] = MappingProxyType({}),
    lost: Collection[str] = (),
) -> Tree:
    """The whole tree, roots first, parents before their children.

    `depths`: jobs ready, by queue. `now`: Unix seconds. `clock_differences`: seconds by which
    nodes' clocks are ahead of this machine's, where known. `lost`: nodes that do not answer, which
    the broker may take for connected for a while. The bindings decide the edges; a node's
    own state decides the rest, as long as its inbox exists.
    """
    children = _children(edges)
    roots = sorted(edges.roots, key=_root_key)
    all_nodes = edges.registered.union(
        edges.present, edges.roots, edges.parents, edges.parents.values(), states
    )
    hanging = list(_walk(roots, children))
    detached = sorted(all_nodes.difference(hanging), key=natural_key)
    models = _inherited_models(edges, children)
    nodes = []
    for name in hanging + detached:
        model = models.get(name, "")
        node = _node(name, edges, children[name], states.get(name), depths, model, now)
        if node["state"] == "starting" and name in lost and name not in states:
            node.update(state="lost", detail="does not answer; its process or its network is gone")
        node["clock_difference"] = clock_differences.get(name)
        nodes.append(node)
    annotate(nodes, roots)
    return {
        "roots": roots,
        "nodes": nodes,
        "summary": summarise(nodes, roots),
        "at": datetime.fromtimestamp(now, UTC).isoformat(),
    }


def edges_as_told(states: Mapping[str, NodeState]) -> Edges:
    """The edges as the nodes themselves tell them, for who does not read the broker's bindings."""
    roots: dict[str, str] = {}
    parents: dict[str, str] = {}
    for name, state in states.items():
        if state.parent is None:
            roots[name] = state.model
        else:
            parents[name] = state.parent
    return Edges(roots, parents, frozenset(states), frozenset(states))


def edges_of_part(states: Mapping[str, NodeState]) -> Edges:
    """The same for a part of the tree: its highest nodes stand in the root's place."""
    told = edges_as_told(states)
    tops = {name: state.model for name, state in states.items() if state.parent not in states}
    below = {child: parent for child, parent in told.parents.items() if parent in states}
    return Edges(tops, below, told.present, told.registered)


def _root_key(name: str) -> tuple[bool, object]:
    """The default model's root comes first."""
    return name != "root", natural_key(name)


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
    if state is None:
        return "starting"
    return state.status


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
        "memory": state.memory,
        "memory_total": state.memory_total,
        "memory_free": state.memory_free,
        "precision": state.precision,
        "weights": state.weights,
        "cache": state.cache,
        "version": state.version,
        "loaded": state.loaded,
        "joined": state.joined,
        "policy": state.policy,
        "slots": state.slots,
        "running": state.running,
        "held": state.held,
        "queued": state.held + depth,
        "received": state.received,
        "finished": state.finished,
        "failed": state.failed,
        "tokens": state.tokens,
        "host": state.host,
        "pid": state.pid,
        "detail": state.detail,
        "warning": state.warning,
        "waited": round(state.waited, 2),
        "oldest_wait": round(state.oldest_wait, 2),
        "wait_error": round(state.wait_error, 2),
        "prompt_tokens": state.prompt_tokens,
        "reused_tokens": state.reused_tokens,
        "uptime": max(0.0, round(now - state.started, 1)),
        "seen": max(0.0, round(now - state.sent, 1)),
    }


_UNKNOWN: dict[str, Any] = {
    "engine": "",
    "device": "",
    "memory": 0,
    "memory_total": 0,
    "memory_free": 0,
    "precision": "",
    "weights": 0,
    "cache": 0,
    "version": "",
    "loaded": None,
    "joined": False,
    "policy": "",
    "slots": 0,
    "running": 0,
    "held": 0,
    "received": 0,
    "finished": 0,
    "failed": 0,
    "tokens": 0,
    "host": "",
    "pid": 0,
    "warning": "",
    "waited": 0.0,
    "oldest_wait": 0.0,
    "wait_error": 0.0,
    "prompt_tokens": 0,
    "reused_tokens": 0,
    "uptime": None,
    "seen": None,
}
