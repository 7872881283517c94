"""`top`: rates, the order of nodes, and frames that fit the terminal."""

import re
from typing import Any

import pytest
from msgspec.structs import replace

from broker.node_state import NodeState
from cli.top import view
from cli.top.figures import figures
from cli.top.rates import WINDOW, TokenRates
from cli.top.view import Choice
from tests.unit.api_site import node_state
from topology import names

CODES = re.compile(r"\x1b\[[0-9;]*m")


def states_of(*states: NodeState) -> dict[str, NodeState]:
    return {state.name: state for state in states}


def tree(**changes: Any) -> dict[str, NodeState]:
    """root -> n1 -> n2, n10; n3 below root."""
    root = node_state("root", parent=None, engine="none", slots=0, children=("n1", "n3"), held=2)
    return states_of(
        root,
        node_state("n1", children=("n2", "n10"), running=1),
        node_state("n2", parent="n1", tokens=50, **changes),
        node_state("n10", parent="n1", running=2, failed=4),
        node_state("n3", status="drained"),
    )


def shown(states: dict[str, NodeState] | None = None) -> dict[str, Any]:
    return figures(states or tree(), {names.node("root"): 5}, TokenRates())


def test_a_rate_takes_two_moments_of_one_process() -> None:
    rates = TokenRates()
    state = node_state("n1", tokens=100)
    rates.add({"n1": state})
    assert rates.of("n1") == 0.0
    rates.add({"n1": replace(state, tokens=160, sent=state.sent + 2)})
    assert rates.of("n1") == 30.0
    for second in range(3, 20):
        rates.add({"n1": replace(state, tokens=160, sent=state.sent + second)})
    assert rates.of("n1") == 0.0, f"nothing for {WINDOW} s"
    rates.add({"n1": replace(state, pid=2, tokens=5, sent=state.sent + 20)})
    assert rates.of("n1") == 0.0, "a new process counts from 0"
    rates.add({})
    assert rates.of("n1") == 0.0


def test_the_nodes_come_in_the_trees_order_with_their_level() -> None:
    seen = shown()
    assert [(node["name"], node["level"]) for node in seen["nodes"]] == [
        ("root", 0),
        ("n1", 1),
        ("n2", 2),
        ("n10", 2),
        ("n3", 1),
    ]
    assert seen["total"]["waiting"] == 7
    assert seen["total"]["usable"] == 6, "the drained node's slots do not count"
    assert seen["trees"][0]["model"] == "tiny"


def test_a_long_chain_and_a_ring_are_no_trouble() -> None:
    chain = [node_state("root", parent=None, engine="none", slots=0)]
    for number in range(3000):
        chain.append(node_state(f"n{number}", parent=f"n{number - 1}" if number else "root"))
    assert shown(states_of(*chain))["nodes"][-1]["level"] == 3000
    ring = [node_state("a", parent="b"), node_state("b", parent="a")]
    assert len(shown(states_of(*ring))["nodes"]) == 2


@pytest.mark.parametrize(("width", "height"), [(20, 5), (60, 10), (120, 40), (300, 100)])
def test_a_frame_fits(width: int, height: int) -> None:
    lines = view.screen(shown(), Choice(), width, height, "", coloured=True)
    assert len(lines) <= height
    assert max(len(CODES.sub("", line)) for line in lines) <= width


def test_a_long_list_scrolls_and_stays_within_itself() -> None:
    nodes = [node_state(f"n{number}") for number in range(100)]
    seen = shown(states_of(node_state("root", parent=None, engine="none", slots=0), *nodes))
    last = view.last_first(seen, 20)
    end = Choice().scrolled(1000, last)
    lines = view.screen(seen, end, 120, 20, "", coloured=False)
    assert lines[-2].split()[0] == "n99"
    assert "of 101" in lines[-1]
    assert lines != view.screen(seen, end.scrolled(-1, last), 120, 20, "", coloured=False)
    first = view.screen(seen, end.scrolled(-2000, last), 120, 20, "", coloured=False)
    assert any(line.split()[:1] == ["n0"] for line in first)


def test_the_order_is_the_readers() -> None:
    nodes = shown()["nodes"]
    by_running = view.ordered(nodes, Choice(sort="running"))
    assert [node["name"] for node in by_running[:2]] == ["n10", "n1"]
    assert view.ordered(nodes, Choice(sort="failed", reverse=True))[-1]["name"] == "n10"
    choice, seen = Choice(first=3), []
    for _ in view.SORTS:
        choice = choice.next_sort()
        seen.append(choice.sort)
    assert sorted(seen) == sorted(view.SORTS)
    assert choice.first == 0


def test_a_tree_that_is_stuck_says_why_and_nothing_escapes_to_the_terminal() -> None:
    root = node_state("root", parent=None, engine="none", slots=0, held=3)
    hostile = node_state("n1", status="drained", host="\x1b[31mhost", warning="\x1b]0;title\x07")
    lines = view.whole(shown(states_of(root, hostile)), coloured=False)
    assert "nothing can run: drained n1" in lines[1]
    assert "\x1b" not in "".join(lines)
    assert "\x07" not in "".join(lines)


def test_what_is_old_says_so() -> None:
    lines = view.screen(shown(), Choice(), 80, 24, "the broker is away", coloured=False)
    assert lines[-1] == "the broker is away"
