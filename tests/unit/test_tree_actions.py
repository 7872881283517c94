"""What actions on nodes do, worked out from the tree."""

from typing import Any

import pytest

from broker.errors import BadAction, NoSuchNode
from broker.tree import Tree
from broker.tree_actions import Action, effect, has_happened, levels, sentence
from broker.truth import annotate

PARENTS = {"n1": "root", "n2": "n1", "n3": "n1", "n4": "n2", "m1": "root-big", "room2": "root"}


def node(name: str, **changes: Any) -> dict[str, Any]:
    parent = PARENTS.get(name)
    fields = {
        "name": name,
        "parent": parent,
        "children": [child for child, above in PARENTS.items() if above == name],
        "state": "idle",
        "engine": "echo" if parent else "none",
        "model": "big" if name in ("root-big", "m1") else "tiny",
        "slots": 2 if parent else 0,
        "running": 0,
        "queued": 0,
        "uptime": 100.0,
        "seen": 1.0,
        "warning": "",
        "host": "",
        "device": "",
        "precision": "",
        "weights": 0,
        "cache": 0,
        "memory": 0,
        "memory_total": 0,
        "memory_free": 0,
    }
    return {**fields, **changes}


def tree(**changes: dict[str, Any]) -> Tree:
    """root -> n1 -> (n2 -> n4, n3), and root-big -> m1."""
    names = (
        "root",
        "n1",
        "n2",
        "n3",
        "n4",
        "root-big",
        "m1",
        *(n for n in changes if n == "room2"),
    )
    nodes = [node(name, **changes.get(name, {})) for name in names]
    roots = ["root", "root-big"]
    annotate(nodes, roots)
    return {"roots": roots, "nodes": nodes}


def test_a_drain_tells_what_gets_no_more_jobs() -> None:
    seen = tree(n2={"running": 2}, n4={"running": 1}, root={"queued": 23}, m1={"running": 2})
    drained = effect(seen, "drain", "n2")
    assert drained.nodes == ("n2", "n4")
    assert (drained.slots, drained.all_slots) == (4, 8)
    assert (drained.running, drained.waiting) == (3, 23)
    assert sentence(drained) == (
        "Draining n2 gives it and 1 node below it no more jobs: 4 of 8 slots; "
        "3 running jobs will finish, 23 waiting jobs stay at the root."
    )


def test_slots_below_a_drained_node_are_not_counted_as_ones_that_get_jobs() -> None:
    seen = tree(n2={"state": "drained"})
    assert (effect(seen, "drain", "n1").slots, effect(seen, "drain", "n4").slots) == (4, 0)


def test_a_removed_node_leaves_its_children_to_its_parent() -> None:
    removed = effect(tree(), "remove", "n1")
    assert (removed.nodes, removed.children, removed.parent) == (("n1",), ("n2", "n3"), "root")
    assert "n2, n3 move below root" in sentence(removed)
    whole = effect(tree(), "restart", "n1", whole=True)
    assert whole.nodes == ("n1", "n2", "n3", "n4")
    assert whole.children == ()


def test_only_a_tree_that_ended_is_removed_with_its_root() -> None:
    down = {"state": "down", "seen": None}
    removed = effect(tree(**{"root-big": down, "m1": down}), "remove", "root-big")
    assert (removed.gone, removed.nodes) == (True, ("root-big", "m1"))
    assert sentence(removed) == (
        "The tree of root-big has ended. Removing it deletes the queues of 2 nodes; "
        "no job waits in them."
    )
    with_jobs = effect(
        tree(**{"root-big": {**down, "queued": 1}, "m1": {**down, "queued": 2}}),
        "remove",
        "root-big",
    )
    assert (with_jobs.gone, with_jobs.held) == (True, 3)
    assert "3 jobs that waited in them will end with an error" in sentence(with_jobs)
    with pytest.raises(BadAction, match="is down"):
        effect(tree(**{"root-big": down}), "remove", "root-big")


def test_a_subtree_restarts_from_its_leaves_up() -> None:
    assert levels(tree(), "n1") == [["n4"], ["n2", "n3"], ["n1"]]


@pytest.mark.parametrize(
    ("action", "name", "parent", "reason"),
    [
        ("move", "n1", "n4", "below itself"),
        ("move", "n1", "m1", "one model"),
        ("move", "root", "n1", "is a root"),
        ("remove", "root", None, "entrance"),
        ("drain", "root", None, "entrance"),
        ("restart", "n3", None, "down"),
        ("move", "n2", "n3", "down"),
        ("move", "n1", "room2", "'room2' is a joined node, a leaf: .* its parent, 'root'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    action: Action, name: str, parent: str | None, reason: str
) -> None:
    with pytest.raises(BadAction, match=reason):
        effect(tree(n3={"state": "down"}, room2={"joined": True}), action, name, parent=parent)


def test_nobody_acts_on_a_node_that_is_not_there() -> None:
    with pytest.raises(NoSuchNode):
        effect(tree(), "drain", "n9")


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("drain", {}, {"state": "draining"}),
        ("resume", {"state": "drained"}, {"state": "busy"}),
        ("move", {}, {"parent": "root"}),
        ("restart", {}, {"uptime": 3.0}),
        ("restart", {}, {"state": "down"}),
        ("remove", {}, {"state": "down"}),
    ],
)
def test_the_tree_shows_that_an_action_has_happened(
    action: Action, before: dict[str, Any], after: dict[str, Any]
) -> None:
    def happened(changes: dict[str, Any]) -> bool:
        return has_happened(tree(n4=changes), action, "n4", parent="root", seconds=5.0)

    assert not happened(before)
    assert happened(after)
