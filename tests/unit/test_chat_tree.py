"""The tree of a conversation's messages, as plain values."""

from hypothesis import given
from hypothesis import strategies as st

from api.chat.tree import Node, has_children, head_of, newest_leaf, parents_of, path_to

# 1 -> 2 -> 3 -> 4, an edit of 3 (5 -> 6), another answer to 1 (7), an edit of 1 (8)
PARENTS = {1: None, 2: 1, 3: 2, 4: 3, 5: 2, 6: 5, 7: 1, 8: None}


def test_a_branch_is_the_path_from_the_root() -> None:
    assert path_to(PARENTS, 4) == [1, 2, 3, 4]
    assert path_to(PARENTS, 6) == [1, 2, 5, 6]
    assert path_to(PARENTS, 8) == [8]
    assert path_to(PARENTS, None) == []
    assert path_to(PARENTS, 99) == []


def test_below_a_fork_the_newest_branch_is_shown() -> None:
    assert newest_leaf(PARENTS, 1) == 7
    assert newest_leaf(PARENTS, 2) == 6
    assert newest_leaf(PARENTS, 3) == 4
    assert newest_leaf(PARENTS, 8) == 8


def test_what_is_followed() -> None:
    assert has_children(PARENTS, 2)
    assert not has_children(PARENTS, 4)


def test_messages_of_the_former_release_follow_the_one_before() -> None:
    nodes = [Node(1, None, True), Node(2, 1, False), Node(3, None, False), Node(5, None, False)]
    assert parents_of(nodes) == {1: None, 2: 1, 3: 2, 5: 3}
    assert parents_of([Node(4, None, False)]) == {4: None}


def test_the_head_is_the_stored_one_unless_the_former_release_went_on() -> None:
    placed = [Node(1, None, True), Node(2, 1, False), Node(3, 1, False)]
    assert head_of(placed, 2) == 2
    assert head_of(placed, None) == 3
    assert head_of(placed, 99) == 3  # it was deleted
    assert head_of([*placed, Node(4, None, False), Node(5, None, False)], 2) == 5
    assert head_of([*placed, Node(4, None, False), Node(5, 4, False)], 5) == 5
    assert head_of([], 7) is None


@given(st.lists(st.integers(0, 30), max_size=30))
def test_any_tree_has_a_path_to_each_message(choices: list[int]) -> None:
    parents: dict[int, int | None] = {}
    for number, choice in enumerate(choices, 1):
        parents[number] = None if choice == 0 else choice % number or None
    for message in parents:
        path = path_to(parents, message)
        assert path == sorted(path)
        assert path[-1] == message
        assert parents[path[0]] is None
        assert newest_leaf(parents, message) not in parents.values()
