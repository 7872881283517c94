"""What a model's tree does, as the autoscaler sees it, and where it can change. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from broker.host_messages import HostNode, HostState
from broker.tree import Tree
from broker.tree_actions import is_root
from topology.autoscale import Load

_STARTS = ("preparing", "starting")

Node = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledNode:
    """A node that the autoscaler has started; `leaving`: and drains, to end it."""

    name: str
    model: str
    host: str
    leaving: bool = False


def members(tree: Tree, model: str) -> list[Node]:
    """The model's nodes that live, without its roots."""
    alive: list[Node] = []
    for node in tree["nodes"]:
        if node["model"] == model and node["state"] != "down" and not is_root(node):
            alive.append(node)
    return alive


def load_of(
    tree: Tree, hosts: Iterable[HostState], model: str, scaled: Collection[ScaledNode]
) -> Load:
    """`scaled`: the nodes that the autoscaler has started, and may end."""
    nodes = members(tree, model)
    names = {node["name"] for node in nodes}
    changing = len(_starting(hosts, model) - names)
    changing += sum(node["state"] == "starting" for node in nodes)
    changing += sum(node.leaving for node in scaled)
    roots = [node for node in tree["nodes"] if node["model"] == model and is_root(node)]
    return Load(
        nodes=len(names | _starting(hosts, model)),
        changing=changing,
        removable=superfluous(tree, model, scaled) is not None,
        slots=sum(node["usable"] for node in nodes),
        largest=max((node["usable"] for node in nodes), default=0),
        running=sum(node["running"] for node in nodes),
        waiting=sum(node["queued"] for node in (*roots, *nodes)),
        oldest_wait=max((node["oldest_wait"] for node in roots), default=0.0),
    )


def _starting(hosts: Iterable[HostState], model: str) -> set[str]:
    names = set()
    for host in hosts:
        for node in host.nodes:
            if node.model == model and node.state in _STARTS:
                names.add(node.name)
    return names


def host_for(hosts: Iterable[HostState], model: str) -> str | None:
    """The host for one more node of the model: one with room, and the most free memory."""
    fitting = []
    for host in hosts:
        allows = any(offer.name == model for offer in host.models)
        if allows and len(_running(host)) < host.max_nodes:
            fitting.append((host.memory_free, host.name))
    if not fitting:
        return None
    return max(fitting)[1]


def _running(host: HostState) -> list[HostNode]:
    return [node for node in host.nodes if node.state not in ("failed", "removed")]


def superfluous(tree: Tree, model: str, scaled: Iterable[ScaledNode]) -> ScaledNode | None:
    """The node to end: a leaf that the autoscaler started, the idlest, the newest of equals."""
    own = {node.name: node for node in scaled}
    leaves = []
    for member in members(tree, model):
        if member["name"] in own and not member["children"]:
            leaves.append((member["running"], member["uptime"] or 0.0, member["name"]))
    if not leaves:
        return None
    _, _, name = min(leaves)
    return own[name]


def gone(hosts: Mapping[str, HostState], scaled: Iterable[ScaledNode]) -> list[ScaledNode]:
    """Those that their host does not run any more; of a host that is away nothing is known."""
    missing = []
    for node in scaled:
        host = hosts.get(node.host)
        if host is not None and node.name not in _started(host, node.model):
            missing.append(node)
    return missing


def _started(host: HostState, model: str) -> set[str]:
    """The model's nodes that the host runs on request; those of its own have no model there."""
    return {node.name for node in _running(host) if node.model == model}
