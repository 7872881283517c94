"""Where one more node of a tree hangs, and what it is called. Pure."""

from collections.abc import Collection, Mapping, Sequence

MAX_FANOUT = 64  # below one node, where the tree shows no fan-out of its own


def best_parent(root: str, children: Mapping[str, Sequence[str]]) -> str:
    """The node below which one more keeps the tree's shape: the first with room, level by level.

    `children`: of each node that takes jobs; others are left out. A tree whose nodes all hang below
    its root stays flat. In a deeper one a node has at most as many children as another has already.
    """
    inner = [len(below) for name, below in children.items() if name != root]
    if max(inner, default=0) == 0:
        return root
    fanout = max(2, *inner)
    level = [child for child in children.get(root, ()) if child in children]
    seen = {root, *level}
    while level:
        for name in level:
            if len(children[name]) < fanout:
                return name
        below: list[str] = []
        for name in level:
            for child in children[name]:
                if child in children and child not in seen:
                    seen.add(child)
                    below.append(child)
        level = below
    return root


def free_name(taken: Collection[str], prefix: str = "n") -> str:
    """The first of n1, n2, … that is free."""
    number = 1
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"
