"""The shape in which `canopy up` hangs its nodes: flat below the root, or with bounded fan-out."""


def node_names(count: int) -> list[str]:
    """`n1`, `n2`, ...: the names of `count` nodes, in the order in which they join the tree."""
    return [f"n{position}" for position in range(1, count + 1)]


def parent_of(position: int, *, fanout: int | None, root: str = "root") -> str:
    """The parent of node `n<position>`, positions counted from 1.

    Without a fan-out every node hangs directly below the root. With one, n1 hangs below the root
    and every node has at most `fanout` children, filled level by level: 7 nodes and a fan-out of 2
    make root -> n1 -> (n2, n3) -> (n4, n5, n6, n7). Raises ValueError for a position or fan-out
    below 1.
    """
    if position < 1:
        raise ValueError(f"positions count from 1, not {position}")
    if fanout is not None and fanout < 1:
        raise ValueError(f"a fan-out is at least 1, not {fanout}")
    if fanout is None or position == 1:
        return root
    return f"n{(position - 2) // fanout + 1}"
