"""What an operator can do with nodes, worked out from the tree before and after. Pure.

The page, the API and the command line ask the same functions what an action would do, whether it
is possible, and whether it has happened.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from broker.errors import BadAction, NoSuchNode
from broker.tree import Tree
from broker.wire import AnyControl, Attach, Drain, Restart, Resume, Stop
from topology.tree import BadEdge, check_attach

Action = Literal["drain", "resume", "restart", "remove", "move"]
CONFIRM_SECONDS = 10.0  # an action that has not happened by then has failed

_Node = Mapping[str, Any]
_WORKING = ("idle", "busy")
_RESTART_SLACK = 1.0  # seconds by which two clocks' ideas of a node's start may differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What an action would do now.

    `nodes`: whom it concerns, the node itself first; `slots`: of these, the ones that get jobs now;
    `all_slots`: of the whole tree; `running`, `held`: jobs on these nodes; `waiting`: jobs at the
    tree's root; `children`: nodes that move to the node's parent; `parent`: that or the new one;
    `gone`: no process of these nodes lives, and what the broker keeps of them is deleted.
    """

    action: Action
    node: str
    parent: str | None
    nodes: tuple[str, ...]
    children: tuple[str, ...]
    slots: int
    all_slots: int
    running: int
    held: int
    waiting: int
    gone: bool = False


def find(tree: Tree, name: str) -> _Node:
    """The node of that name. Raises NoSuchNode."""
    for node in tree["nodes"]:
        if node["name"] == name:
            match: _Node = node
            return match
    raise NoSuchNode(f"no node named {name!r} is registered (./canopy tree lists them)")


def subtree(tree: Tree, name: str) -> list[str]:
    """The node and all below it, parents first; each once, also where a repair makes a loop."""
    children = {node["name"]: node["children"] for node in tree["nodes"]}
    names = [name]
    for parent in names:
        for child in children.get(parent, ()):
            if child not in names:
                names.append(child)
    return names


def levels(tree: Tree, name: str) -> list[list[str]]:
    """The subtree by depth, the deepest first: the order in which its nodes restart."""
    parents = {node["name"]: node["parent"] for node in tree["nodes"]}
    depths = {name: 0}
    by_depth: list[list[str]] = [[name]]
    for child in subtree(tree, name)[1:]:
        depth = depths[child] = depths[parents[child]] + 1
        if depth == len(by_depth):
            by_depth.append([])
        by_depth[depth].append(child)
    return by_depth[::-1]


def check(tree: Tree, action: Action, name: str, parent: str | None = None) -> None:
    """Raises NoSuchNode, or BadAction with the reason why this cannot be done."""
    node = find(tree, name)
    if action == "remove" and is_gone(tree, name):
        return
    if node["state"] == "down":
        raise BadAction(f"{name!r} is down: no process would hear of it")
    if action == "move":
        _check_move(tree, node, parent or "")
    elif action == "remove" and is_root(node):
        raise BadAction(f"{name!r} is the entrance of a tree; stop its model instead")
    elif action == "drain" and is_root(node):
        raise BadAction(f"{name!r} is the entrance of a tree; drain the nodes below it instead")


def is_gone(tree: Tree, name: str) -> bool:
    """True for the entrance of a tree that has ended: no process lives."""
    if name not in tree["roots"]:
        return False
    return all(find(tree, member)["state"] == "down" for member in subtree(tree, name))


def helper(tree: Tree, gone: Collection[str]) -> str | None:
    """A living root that can remove those that are gone; None: no tree lives.

    Nodes below may have joined with fewer rights.
    """
    for node in tree["nodes"]:
        if node["state"] in _WORKING and node["name"] not in gone and is_root(node):
            name: str = node["name"]
            return name
    return None


def _check_move(tree: Tree, node: _Node, parent: str) -> None:
    name = node["name"]
    above = find(tree, parent)
    if is_root(node):
        raise BadAction(f"{name!r} is a root; only nodes below a root can be moved")
    if above["model"] != node["model"]:
        raise BadAction(
            f"{parent!r} serves {above['model']}, and {name!r} {node['model']}: "
            "a tree has one model"
        )
    parents = {node["name"]: node["parent"] for node in tree["nodes"] if node["parent"]}
    try:
        check_attach(parents, name, parent)
    except BadEdge as error:
        raise BadAction(str(error)) from error
    check_parent(above)


def check_parent(node: _Node) -> None:
    """Raises BadAction if nothing can hang below that node."""
    name, above = node["name"], node["parent"]
    if node["state"] == "down":
        raise BadAction(f"{name!r} is down: nothing can hang below it")
    if node.get("joined"):
        raise BadAction(
            f"{name!r} is a joined node, a leaf: nothing can hang below it; choose a node that has "
            f"no token, such as its parent, {above!r}"
        )


def is_root(node: _Node) -> bool:
    """True for the entrance of a tree, which runs nothing itself."""
    return bool(node["engine"] == "none")


def effect(
    tree: Tree, action: Action, name: str, *, parent: str | None = None, whole: bool = False
) -> Effect:
    """What the action would do. `whole`: with everything below. Raises NoSuchNode, BadAction."""
    check(tree, action, name, parent)
    node = find(tree, name)
    gone = action == "remove" and is_gone(tree, name)
    below = whole or gone or action in ("drain", "resume", "move")
    names = tuple(subtree(tree, name)) if below else (name,)
    concerned = [find(tree, member) for member in names]
    same_model = [other for other in tree["nodes"] if other["model"] == node["model"]]
    children: tuple[str, ...] = ()
    if not below:
        children = tuple(node["children"])
    return Effect(
        action=action,
        node=name,
        parent=parent or node["parent"],
        nodes=names,
        children=children,
        slots=sum(member["usable"] for member in concerned),
        all_slots=sum(other["usable"] for other in same_model),
        running=sum(member["running"] for member in concerned),
        held=sum(member["queued"] for member in concerned),
        waiting=sum(other["queued"] for other in same_model if is_root(other)),
        gone=gone,
    )


def sentence(effect: Effect) -> str:
    """What the action does, for people who read English."""
    name, others = effect.node, len(effect.nodes) - 1
    slots = f"{effect.slots} of {effect.all_slots} slots"
    if effect.action == "drain":
        return (
            f"Draining {name} gives it and {_count(others, 'node')} below it no more jobs: "
            f"{slots}; "
            f"{_count(effect.running, 'running job')} will finish, "
            f"{_count(effect.waiting, 'waiting job')} stay at the root."
        )
    if effect.action == "resume":
        return f"Resuming {name} gives it and {_count(others, 'node')} below it jobs again."
    if effect.action == "move":
        return (
            f"{name} moves below {effect.parent} with {_count(others, 'node')} below it, "
            f"{_count(effect.running, 'running job')} and {_count(effect.held, 'waiting job')}; "
            "nothing is interrupted."
        )
    if effect.gone:
        jobs = "no job waits in them"
        if effect.held:
            jobs = (
                f"{_count(effect.held, 'job')} that waited in them will end with an error, "
                "and become dead letters"
            )
        return (
            f"The tree of {name} has ended. Removing it deletes the queues of "
            f"{_count(len(effect.nodes), 'node')}; {jobs}."
        )
    verb = "Removing" if effect.action == "remove" else "Restarting"
    text = (
        f"{verb} {_count(len(effect.nodes), 'node')}, from {name} down, takes {slots}; "
        f"{_count(effect.running, 'running job')} get 3 s, then go on elsewhere."
    )
    if effect.children:
        text += f" {', '.join(effect.children)} move below {effect.parent}."
    return text


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}s"


def message(action: Action, parent: str | None = None) -> AnyControl:
    """What the node is told."""
    if action == "move":
        return Attach(parent=parent or "")
    return _MESSAGES[action]()


_MESSAGES: dict[Action, Callable[[], AnyControl]] = {
    "drain": Drain,
    "resume": Resume,
    "restart": Restart,
    "remove": Stop,
}


def has_happened(
    tree: Tree, action: Action, name: str, *, parent: str | None, seconds: float, gone: bool = False
) -> bool:
    """Whether the tree shows the action's effect.

    `seconds`: since the node was told; `gone`: see Effect.
    """
    try:
        node = find(tree, name)
    except NoSuchNode:
        return action in ("remove", "restart")
    state = node["state"]
    if action == "drain":
        return state in ("draining", "drained")
    if action == "resume":
        return state in _WORKING
    if action == "move":
        return bool(node["parent"] == parent)
    if action == "remove":
        return bool(state == "down") and not gone
    return state == "down" or is_new(node, seconds)


def is_new(node: _Node, seconds: float) -> bool:
    """Whether the node has started within the last so many seconds."""
    return node["uptime"] is not None and node["uptime"] < seconds + _RESTART_SLACK


def is_back(tree: Tree, name: str, seconds: float) -> bool:
    """Whether the node has restarted within the last so many seconds, and serves."""
    try:
        node = find(tree, name)
    except NoSuchNode:
        return False
    return node["state"] in _WORKING and is_new(node, seconds)
