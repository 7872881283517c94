"""The dispatch rule, without a broker."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.children import Child
from topology.dispatch import (
    QUIET_SECONDS,
    Dispatcher,
    Forward,
    Hold,
    HoldHigh,
    Paper,
    Run,
)
from topology.natural import natural_key
from topology.tree import BadEdge, check_attach, orphans

PAUSED = "no node takes jobs now: they are paused or have failed"
ARTICLE_TREE = {"root": ["n1"], "n1": ["n2", "n3"], "n2": ["n4", "n5"], "n3": ["n6", "n7"]}


def build(tree: dict[str, list[str]], slots: int = 1) -> dict[str, Dispatcher]:
    """A dispatcher a node; the root has no slots."""
    names = {"root", *(child for children in tree.values() for child in children)}
    nodes = {name: Dispatcher(0 if name == "root" else slots, Paper()) for name in names}
    for parent, children in tree.items():
        for child in children:
            nodes[parent].put_child(Child(child, slots=slots))
    return nodes


def send(nodes: dict[str, Dispatcher], at: str = "root") -> tuple[str, bool]:
    """Drops one job into the tree; returns where it ended and whether it runs there."""
    while True:
        match nodes[at].decide():
            case Run():
                nodes[at].run_started()
                return at, True
            case Hold():
                return at, False
            case Forward(child):
                nodes[at].forwarded(child)
                at = child


def test_article_example_order_in_which_nodes_become_busy() -> None:
    nodes = build(ARTICLE_TREE)
    order = [send(nodes) for _ in range(7)]
    assert order == [(name, True) for name in ("n1", "n2", "n3", "n4", "n6", "n5", "n7")]


def test_with_every_node_busy_only_leaves_hold_and_in_turn() -> None:
    nodes = build(ARTICLE_TREE)
    for _ in range(7):
        send(nodes)
    held = [send(nodes) for _ in range(8)]
    assert held == [(name, False) for name in ("n4", "n6", "n5", "n7", "n4", "n6", "n5", "n7")]


def test_an_idle_inner_node_runs_before_its_children() -> None:
    nodes = build(ARTICLE_TREE)
    for _ in range(7):
        send(nodes)
    nodes["n2"].run_ended()
    assert [send(nodes)[0] for _ in range(2)] == ["n2", "n6"]


def test_root_never_computes_and_holds_without_children() -> None:
    root = Dispatcher(0, Paper())
    assert root.decide() == Hold("no node is connected", "no_node")
    root.put_child(Child("n1", accepting=False))
    assert root.decide() == Hold(PAUSED, "paused")


def test_slots_of_nodes_that_take_no_jobs_are_not_open() -> None:
    node = Dispatcher(2, Paper())
    node.put_child(Child("n1", slots=4))
    node.put_child(Child("n2", slots=8, accepting=False))
    assert (node.open_slots(), node.subtree_slots()) == (6, 14)
    node.pause_starts(True)
    assert node.open_slots() == 4
    node.set_accepting(False)
    assert node.open_slots() == 0


def test_a_draining_child_is_passed_over_and_a_draining_node_keeps_everything() -> None:
    node = Dispatcher(0, Paper())
    node.put_child(Child("n1"))
    node.put_child(Child("n2", accepting=False))
    for _ in range(3):
        assert node.decide() == Forward("n1")
        node.forwarded("n1")
    node.set_accepting(False)
    assert node.decide() == Hold("the node is draining", "paused")


def test_turn_order_survives_a_child_that_leaves() -> None:
    node = Dispatcher(0, Paper())
    for name in ("n1", "n2", "n3"):
        node.put_child(Child(name))
    node.forwarded("n2")
    node.remove_child("n2")
    assert node.decide() == Forward("n3")


@given(children=st.sets(st.integers(1, 50), min_size=1, max_size=12), jobs=st.integers(1, 100))
def test_round_robin_gives_each_child_its_share(children: set[int], jobs: int) -> None:
    node = Dispatcher(0, Paper())
    for number in children:
        node.put_child(Child(f"n{number}"))
    for _ in range(jobs):
        decision = node.decide()
        assert isinstance(decision, Forward)
        node.forwarded(decision.child)
    counts = [child.sent for child in node.children]
    assert sum(counts) == jobs
    assert max(counts) - min(counts) <= 1


@given(st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), min_size=2, unique=True))
def test_natural_order_is_total(names: list[str]) -> None:
    ordered = sorted(names, key=natural_key)
    assert all(natural_key(first) <= natural_key(second) for first, second in pairwise(ordered))


def test_natural_order_counts() -> None:
    assert sorted(["n10", "n2", "root", "n1"], key=natural_key) == ["n1", "n2", "n10", "root"]


@pytest.mark.parametrize("parent", ["n2", "n4", "n5"])
def test_a_node_cannot_hang_below_itself(parent: str) -> None:
    parents = {child: above for above, children in ARTICLE_TREE.items() for child in children}
    with pytest.raises(BadEdge):
        check_attach(parents, "n2", parent)
    check_attach(parents, "n2", "n3")


def test_hold_high_forwards_only_what_a_free_slot_below_waits_for() -> None:
    root = Dispatcher(0, HoldHigh())
    root.put_child(Child("n1", slots=2, free=2, received=10))
    root.put_child(Child("n2", slots=1, free=1, received=0))
    order = []
    while isinstance(decision := root.decide(), Forward):
        root.forwarded(decision.child)
        order.append(decision.child)
    assert order == ["n1", "n2", "n1"]
    assert root.decide() == Hold("every slot is busy", "busy")


def test_hold_high_counts_what_is_on_its_way_once() -> None:
    root = Dispatcher(0, HoldHigh())
    root.put_child(Child("n1", slots=2, free=2, received=10))
    root.forwarded("n1")
    root.put_child(Child("n1", slots=2, free=2, received=10))  # said before the job came
    assert root.subtree_free() == 1
    root.put_child(Child("n1", slots=2, free=1, received=11))  # it has come and runs
    assert root.subtree_free() == 1
    root.put_child(Child("n1", slots=2, free=2, received=11))  # it has ended
    assert root.subtree_free() == 2


def test_hold_high_heals_after_a_restart_and_after_more_than_was_sent() -> None:
    root = Dispatcher(0, HoldHigh())
    root.put_child(Child("n1", slots=1, free=1, received=5, incarnation="a", number=7))
    root.forwarded("n1")
    root.put_child(
        Child("n1", slots=1, free=1, received=0, incarnation="b")
    )  # started again: counts from the beginning
    assert root.decide() == Forward("n1")
    root.put_child(
        Child("n1", slots=1, free=1, received=9, incarnation="b", number=1)
    )  # jobs that came another way
    assert root.decide() == Forward("n1")


def test_counters_that_come_late_or_twice_change_nothing() -> None:
    root = Dispatcher(0, HoldHigh())
    early, late = (
        Child(
            "n1",
            slots=2,
            free=free,
            received=received,
            finished=finished,
            incarnation="a",
            number=number,
        )
        for number, free, received, finished in ((1, 2, 0, 0), (2, 1, 4, 3))
    )
    root.put_child(early)
    root.put_child(late)
    for _ in range(2):
        root.put_child(late)
        root.put_child(early)
        assert root.child("n1") is not None and root.child("n1").free == 1  # type: ignore[union-attr]
        assert root.subtree_finished() == 3


def test_what_was_lost_on_the_way_is_given_up() -> None:
    root = Dispatcher(0, HoldHigh())
    root.put_child(Child("n1", slots=2, free=2))
    root.forwarded("n1", "ada")
    root.forwarded("n1", "ada")
    assert root.subtree_free() == 0 and root.jobs_below("ada") == 2
    root.lost_in_transit("n1")
    assert root.subtree_free() == 2 and root.jobs_below("ada") == 0


def test_a_users_jobs_count_once_whether_on_their_way_or_there() -> None:
    root = Dispatcher(0, HoldHigh())
    root.put_child(Child("n1", slots=4, free=4))
    root.put_child(Child("n2", slots=4, free=3, users={"ada": 1}))
    for user in ("ada", "bob", "ada"):
        root.forwarded("n1", user)
    assert root.users_below() == {"ada": 3, "bob": 1}
    root.put_child(Child("n1", slots=4, free=2, received=2, users={"ada": 1, "bob": 1}))
    assert root.users_below() == {"ada": 3, "bob": 1}
    root.put_child(Child("n1", slots=4, free=3, received=3, finished=2, users={"ada": 1}))
    assert root.users_below() == {"ada": 2} and root.jobs_below("ada") == 2


def test_what_ended_below_is_counted_while_it_hangs_here() -> None:
    root = Dispatcher(0, HoldHigh())
    root.put_child(Child("n1", finished=100, incarnation="a"))  # elsewhere
    assert root.subtree_finished() == 0
    root.put_child(Child("n1", finished=103, incarnation="a", number=1))
    root.put_child(Child("n1", finished=0, incarnation="b"))
    root.put_child(Child("n1", finished=2, incarnation="b", number=1))
    root.remove_child("n1")
    assert root.subtree_finished() == 5


def test_hold_high_passes_over_a_draining_subtree() -> None:
    root = Dispatcher(0, HoldHigh())
    root.put_child(Child("n1", slots=4, free=4, accepting=False))
    assert root.subtree_free() == 0
    assert root.decide() == Hold(PAUSED, "paused")


@given(
    free=st.dictionaries(st.integers(1, 20), st.integers(0, 5), min_size=1, max_size=8),
    jobs=st.integers(0, 60),
)
def test_hold_high_never_sends_more_than_is_free(free: dict[int, int], jobs: int) -> None:
    root = Dispatcher(0, HoldHigh())
    for number, slots in free.items():
        root.put_child(Child(f"n{number}", slots=slots, free=slots))
    sent = 0
    for _ in range(jobs):
        if isinstance(decision := root.decide(), Forward):
            root.forwarded(decision.child)
            sent += 1
    assert sent == min(jobs, sum(free.values()))


def test_a_dead_nodes_queue_goes_to_its_nearest_living_ancestor() -> None:
    parents = {"n1": "root", "n2": "n1", "n3": "n2", "n8": "gone"}
    registered = ["root", "n1", "n2", "n3", "n8"]
    lost = {"n8": "root"}  # its way up is broken
    assert orphans(parents, ["root"], registered, ["root", "n1", "n2", "n3"]) == lost
    assert orphans(parents, ["root"], registered, ["root", "n1"]) == {
        "n2": "n1",
        "n3": "n1",
        **lost,
    }
    assert orphans(parents, ["root"], registered, ["root"]) == {
        "n1": "root",
        "n2": "root",
        "n3": "root",
        **lost,
    }
    assert orphans(parents, ["root"], registered, []) == {}
    assert orphans(parents, ["root", "root-b"], registered, ["root", "root-b", "n1"]) == {
        "n2": "n1",
        "n3": "n1",
    }


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("send", "arrive", "finish", "report", "hear")), st.integers(0, 9)
        ),
        max_size=80,
    )
)
def test_counters_heal_whatever_is_lost_doubled_or_late(events: list[tuple[str, int]]) -> None:
    """After the newest report the parent is right, whatever was lost, doubled or reordered."""
    slots, sent, received, finished, number = 4, 0, 0, 0, 0
    root = Dispatcher(0, HoldHigh())

    def report() -> Child:
        free = max(0, slots - (received - finished))
        return Child("n1", slots, free, received, finished, incarnation="a", number=number)

    reports = [report()]
    root.put_child(reports[0])
    for what, pick in events:
        if what == "send" and isinstance(root.decide(), Forward):
            root.forwarded("n1")
            sent += 1
        elif what == "arrive" and received < sent:
            received += 1
        elif what == "finish" and finished < received:
            finished += 1
        elif what == "report":
            number += 1
            reports.append(report())
        elif what == "hear":
            root.put_child(reports[pick % len(reports)])
    assert sent - finished <= slots, "no more was sent than there were free slots"
    number += 1
    root.put_child(report())
    assert root.subtree_free() == slots - (sent - finished)
    assert root.subtree_finished() == finished


def test_a_parent_that_knows_of_enough_room_hears_later() -> None:
    node = Dispatcher(8, HoldHigh())
    soon = HoldHigh.report_seconds
    assert node.report_seconds(free=8, received=0) == QUIET_SECONDS
    for _ in range(5):
        node.job_received()
    assert node.report_seconds(free=8, received=0) == QUIET_SECONDS
    node.job_received()
    assert node.report_seconds(free=8, received=0) == soon
    assert Dispatcher(1, HoldHigh()).report_seconds(free=0, received=0) == soon
