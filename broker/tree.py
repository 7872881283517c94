"""The tree as people and scripts see it: one JSON object from bindings, node states and queue depths."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from broker.management import Edges
from broker.wire import NodeState
from topology.dispatch import natural

SILENT_SECONDS = 15.0  # a node that has said nothing for this long counts as down


def describe(
    edges: Edges, states: Mapping[str, NodeState], depths: Mapping[str, int], now: float | None = None
) -> dict[str, object]:
    """`{"roots": [...], "nodes": [...], "at": ...}`, nodes in natural order, parents from the bindings.

    `depths`: jobs ready per node name. A node whose inbox is gone, or that is silent, has the state "down".
    """
    now = time.time() if now is None else now
    parents = {**edges.parents, **dict.fromkeys(edges.roots)}
    names = sorted({*edges.present, *edges.registered, *parents}, key=natural)
    children = {name: [child for child in names if parents.get(child) == name] for name in names}
    return {
        "roots": sorted(edges.roots, key=natural),
        "nodes": [
            {
                "name": name,
                "parent": parents.get(name),
                "children": children[name],
                **_live(name, edges, states.get(name), depths.get(name, 0), now),
            }
            for name in names
        ],
        "at": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
    }


def _live(name: str, edges: Edges, state: NodeState | None, depth: int, now: float) -> dict[str, object]:
    """What the node says of itself; for one that never spoke, what can be known without it."""
    if state is None:
        status = "starting" if name in edges.present else "down"
        silent = {key: None for key in ("device", "policy", "host", "pid", "uptime", "seen")}
        counters = dict.fromkeys(("slots", "running", "held", "received", "finished", "tokens"), 0)
        model, engine = edges.roots.get(name, ""), "none" if name in edges.roots else ""
        return {
            **silent, **counters, "model": model, "engine": engine, "state": status, "detail": "", "depth": depth,
            "queued": depth,
        }  # fmt: skip
    down = name not in edges.present or now - state.sent > SILENT_SECONDS
    return {
        "model": state.model,
        "engine": state.engine,
        "device": state.device,
        "policy": state.policy,
        "state": "down" if down else state.status,
        "slots": state.slots,
        "running": 0 if down else state.running,
        "held": 0 if down else state.held,
        "queued": depth + (0 if down else state.held),
        "depth": depth,
        "received": state.received,
        "finished": state.finished,
        "tokens": state.tokens,
        "host": state.host,
        "pid": state.pid,
        "uptime": round(now - state.started, 1),
        "seen": round(max(0.0, now - state.sent), 1),
        "detail": state.detail,
    }
