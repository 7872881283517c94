"""The shape of the tree that `canopy up` makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology import shape


def edges(nodes: int, fanout: int | None) -> dict[str, str]:
    return {
        name: shape.parent_of(at, fanout=fanout)
        for at, name in enumerate(shape.node_names(nodes), start=1)
    }


def test_without_a_fanout_every_node_hangs_below_the_root() -> None:
    assert edges(3, None) == {"n1": "root", "n2": "root", "n3": "root"}


def test_seven_nodes_with_a_fanout_of_two() -> None:
    assert edges(7, 2) == {
        "n1": "root",
        "n2": "n1",
        "n3": "n1",
        "n4": "n2",
        "n5": "n2",
        "n6": "n3",
        "n7": "n3",
    }


def test_a_fanout_of_one_is_a_chain() -> None:
    assert edges(4, 1) == {"n1": "root", "n2": "n1", "n3": "n2", "n4": "n3"}


def test_another_root() -> None:
    assert shape.parent_of(1, fanout=2, root="root-llama") == "root-llama"
    assert shape.parent_of(5, fanout=None, root="root-llama") == "root-llama"


@pytest.mark.parametrize(("position", "fanout"), [(0, None), (-1, 2), (1, 0)])
def test_what_makes_no_sense_is_refused(position: int, fanout: int | None) -> None:
    with pytest.raises(ValueError, match="1"):
        shape.parent_of(position, fanout=fanout)


@given(nodes=st.integers(1, 200), fanout=st.integers(1, 9))
def test_no_node_has_too_many_children_and_parents_come_first(nodes: int, fanout: int) -> None:
    tree = edges(nodes, fanout)
    parents = list(tree.values())
    assert all(parents.count(parent) <= fanout for parent in set(parents))
    order = ["root", *tree]
    assert all(order.index(parent) < order.index(child) for child, parent in tree.items())
