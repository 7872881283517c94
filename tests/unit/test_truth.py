"""What is shown of a tree: each node's state, usable slots, and why a tree cannot go on."""

from collections.abc import Mapping
from typing import Any

import pytest

from broker.management import Edges
from broker.node_state import NodeState
from broker.tree import tree
from tests.unit.api_site import node_state
from topology import names

SEVEN = {"n1": "root", "n2": "root", "n3": "n1", "n4": "n1", "n5": "n2", "n6": "n2", "n7": "n3"}
NAMES = frozenset({"root", *SEVEN})
ENTRANCE = {"engine": "none", "slots": 0, "parent": None}


def seen(
    *,
    gone: frozenset[str] = frozenset(),
    parents: Mapping[str, str] = SEVEN,
    depths: Mapping[str, int] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The tree of seven nodes with two slots each; `changes`: fields by node, `depths` likewise."""
    edges = Edges(
        roots={"root": "tiny"}, parents=dict(parents), present=NAMES - gone, registered=NAMES
    )
    states: dict[str, NodeState] = {}
    for name in NAMES - gone:
        fields = {"sent": 100.0, "started": 0.0, **changes.get(name, {})}
        if name == "root":
            fields = ENTRANCE | fields
        states[name] = node_state(name, **fields)
    queues = {names.node(name): depth for name, depth in (depths or {}).items()}
    return tree(edges, states, queues, now=100.5)


def test_a_registered_node_that_fell_silent_is_lost_and_no_new_one() -> None:
    """It was "starting" as long as the broker took its connection for alive."""
    edges = Edges(
        roots={"root": "tiny"},
        parents={"n1": "root"},
        present=frozenset({"root", "n1"}),
        registered=frozenset({"root", "n1"}),
    )
    states = {"root": node_state("root", sent=100.0, **ENTRANCE)}
    new = tree(edges, states, {}, now=100.5)["nodes"][1]
    assert (new["state"], new["shown"]) == ("starting", "starting")
    drawn = tree(edges, states, {}, now=100.5, lost={"n1"})
    assert (drawn["nodes"][1]["state"], drawn["nodes"][1]["shown"]) == ("lost", "lost")
    assert "does not answer" in drawn["nodes"][1]["detail"]
    [one] = drawn["summary"]["trees"]
    assert (one["state"], one["reason"], one["blockers"]) == ("empty", "gone", ["n1"])


def shown(drawn: dict[str, Any]) -> dict[str, str]:
    return {node["name"]: node["shown"] for node in drawn["nodes"]}


def test_a_flooded_tree_whose_inner_nodes_are_drained_is_stuck_and_says_what_mends_it() -> None:
    """With 23 jobs waiting it said "14 %" and "Idle"."""
    drawn = seen(
        root={"held": 23, "oldest_wait": 12.0},
        n1={"status": "drained"},
        n2={"status": "draining", "running": 2},
    )
    total = drawn["summary"]["total"]
    assert (total["waiting"], total["running"], total["usable"], total["in_use"]) == (23, 2, 0, 0)
    assert (total["slots"], total["oldest_wait"]) == (14, 12.5)
    [one] = drawn["summary"]["trees"]
    assert (one["state"], one["reason"], one["resume"]) == ("stuck", "drained", ["n1", "n2"])
    assert (one["root"], one["model"]) == ("root", "tiny")
    assert shown(drawn) == {
        "root": "holding",
        "n1": "drained",
        "n2": "draining",
        **dict.fromkeys(("n3", "n4", "n5", "n6", "n7"), "below_draining"),
    }


def test_a_tree_that_died_says_why_and_is_stuck_as_soon_as_a_job_waits_for_it() -> None:
    ended = seen(gone=NAMES)
    [one] = ended["summary"]["trees"]
    assert (one["state"], one["waiting"], ended["summary"]["total"]["state"]) == ("gone", 0, "gone")
    assert (one["reason"], one["blockers"]) == ("root_gone", ["root"])
    [crashed] = seen(gone=frozenset({"root"}))["summary"]["trees"]
    assert (crashed["state"], crashed["reason"]) == ("empty", "root_gone")
    edges = Edges(roots={"root": "tiny"}, parents={}, present=frozenset(), registered=NAMES)
    [waiting] = tree(edges, {}, {"canopy.node.root": 2}, now=1.0)["summary"]["trees"]
    assert (waiting["state"], waiting["waiting"]) == ("stuck", 2)


def test_a_tree_that_died_is_no_better_than_one_at_work() -> None:
    edges = Edges(
        roots={"root": "tiny", "root-big": "big"},
        parents={"n1": "root"},
        present=frozenset({"root", "n1"}),
        registered=frozenset({"root", "n1", "root-big"}),
    )
    states = {
        "root": node_state("root", engine="none", slots=0, parent=None, sent=1.0),
        "n1": node_state("n1", sent=1.0, running=1, status="busy"),
    }
    summary = tree(edges, states, {}, now=1.0)["summary"]
    assert [part["state"] for part in summary["trees"]] == ["working", "gone"]
    assert summary["total"]["state"] == "gone"


def test_usable_slots_are_those_that_a_job_at_the_root_could_get() -> None:
    drawn = seen(
        n1={"status": "drained"},  # and so n3, n4, n7
        n5={"status": "failed", "detail": "out of memory"},
        n6={"running": 1},
    )
    usable = {node["name"]: node["usable"] for node in drawn["nodes"]}
    assert usable == {**dict.fromkeys(NAMES, 0), "n2": 2, "n6": 2}
    total = drawn["summary"]["total"]
    assert (total["usable"], total["in_use"], total["unhealthy"]) == (4, 1, 1)
    assert total["state"] == "working"


@pytest.mark.parametrize(
    ("changes", "state", "reason", "blockers"),
    [
        ({"root": {"status": "drained", "held": 1}}, "stuck", "drained", ["root"]),
        ({"gone": frozenset({"n1", "n2"}), "root": {"held": 1}}, "stuck", "gone", ["n1", "n2"]),
        ({"root": {"held": 1, "sent": 90.0}}, "stuck", "root_gone", ["root"]),
        ({name: {"status": "failed"} for name in SEVEN}, "empty", "failed", sorted(SEVEN)),
        ({name: {"status": "starting"} for name in SEVEN}, "starting", "gone", []),
        ({"root": {"held": 1}}, "waiting", "", []),
        ({}, "idle", "", []),
    ],
)
def test_a_tree_says_how_it_is_and_why(
    changes: Any, state: str, reason: str, blockers: list[str]
) -> None:
    [one] = seen(**changes)["summary"]["trees"]
    assert one["state"] == state
    if state != "starting":
        assert (one["reason"], one["blockers"]) == (reason, blockers)


def test_states_as_shown() -> None:
    drawn = seen(
        gone=frozenset({"n4"}),
        parents={**SEVEN, "n5": "n9"},  # whose node is nowhere
        n1={"warning": "a child's counters were ignored"},
        n2={"status": "busy", "running": 2},
        n3={"sent": 90.0},
        n6={"status": "starting"},
    )
    assert shown(drawn) == {
        "root": "idle",
        "n1": "unhealthy",
        "n2": "busy",
        "n3": "frozen",
        "n4": "gone",
        "n5": "cut_off",
        "n6": "starting",
        "n7": "cut_off",
        "n9": "gone",
    }
    blocked = {node["name"]: node["blocked_by"] for node in drawn["nodes"]}
    assert (blocked["n7"], blocked["n5"]) == ("n3", "n9")


def test_failed_engines_forward_all_the_same() -> None:
    drawn = seen(n1={"status": "failed"})
    usable = {node["name"]: node["usable"] for node in drawn["nodes"]}
    assert (usable["n1"], usable["n3"], usable["n7"]) == (0, 2, 2)
