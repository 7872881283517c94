"""Every model as the page and the command line show it. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict

from api.operate.models.schemas import RuleAnswer, ServedModel, ServedNode
from api.operate.models.store import NO_CARD, Card
from broker.host_messages import HostState
from broker.tree import Tree
from broker.tree_actions import is_root
from topology.autoscale import Rule

Device = tuple[str, str]  # host, name


def served(
    tree: Tree,
    hosts: Mapping[str, HostState],
    contexts: Mapping[str, int],
    cards: Mapping[str, Card],
    rules: Mapping[str, Rule],
) -> list[ServedModel]:
    """Every model that is served, may be loaded, or has settings."""
    loadable: defaultdict[str, list[str]] = defaultdict(list)
    for name, host in hosts.items():
        for model in host.models:
            loadable[model.name].append(name)
    nodes = _nodes(tree)
    models = []
    for name in sorted(nodes.keys() | rules.keys() | cards.keys() | loadable.keys()):
        rule = rules.get(name)
        own = nodes.get(name, [])
        models.append(
            ServedModel(
                model=name,
                nodes=own,
                slots=sum(node.slots for node in own),
                usable=sum(node["usable"] for node in tree["nodes"] if node["model"] == name),
                context=contexts.get(name),
                **asdict(cards.get(name, NO_CARD)),
                autoscale=RuleAnswer(**asdict(rule)) if rule else None,
                loadable=loadable.get(name, []),
            )
        )
    return models


def _nodes(tree: Tree) -> dict[str, list[ServedNode]]:
    """The nodes of each model."""
    taken = _taken(tree)
    nodes: defaultdict[str, list[ServedNode]] = defaultdict(list)
    for node in tree["nodes"]:
        if not node["model"]:
            continue
        free = node["memory_free"]
        if not free:  # on a GPU: what the nodes there leave
            free = max(0, node["memory_total"] - taken[node["host"], node["device"]])
        nodes[node["model"]].append(
            ServedNode(
                name=node["name"],
                root=is_root(node),
                state=node["shown"],
                host=node["host"],
                device=node["device"],
                engine=node["engine"],
                slots=node["slots"],
                running=node["running"],
                queued=node["queued"],
                precision=node["precision"],
                weights=node["weights"],
                cache=node["cache"],
                memory=node["memory"],
                memory_total=node["memory_total"],
                memory_free=free,
            )
        )
    return dict(nodes)


def _taken(tree: Tree) -> Mapping[Device, int]:
    """Bytes of each device that nodes take."""
    taken: defaultdict[Device, int] = defaultdict(int)
    for node in tree["nodes"]:
        taken[node["host"], node["device"]] += node["memory"]
    return taken
