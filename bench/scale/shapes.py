"""The trees that are measured: pure.

Only the deepest nodes have slots, so every job passes every level; with slots on the way `hold-high` would run it at
the top. The complete binary trees vary depth and number together; chains vary the depth alone, flat trees the number
alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from topology import shape

SERIES = ("tree", "chain", "flat")
DEPTHS = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Shape:
    """One tree. `parents`: every node below the root with its parent, top down; names are unique across shapes."""

    series: str
    parents: dict[str, str]
    root: str

    @property
    def model(self) -> str:
        """The model that it serves, alone."""
        return self.root

    @property
    def nodes(self) -> int:
        """Nodes below the root."""
        return len(self.parents)

    @cached_property
    def leaves(self) -> list[str]:
        """The nodes with slots."""
        above = set(self.parents.values())
        return [name for name in self.parents if name not in above]

    @cached_property
    def inner(self) -> list[str]:
        """The nodes between the root and the leaves, which only hand on."""
        below = set(self.leaves)
        return [name for name in self.parents if name not in below]

    @cached_property
    def depth(self) -> int:
        """Hops from the root to a leaf: the same to every leaf."""
        name, hops = next(iter(self.leaves)), 0
        while name != self.root:
            name, hops = self.parents[name], hops + 1
        return hops

    @property
    def outline(self) -> tuple[int, ...]:
        """What trees have in common that differ in names alone: the place of each node's parent, 0 for the root."""
        places = {name: place for place, name in enumerate((self.root, *self.parents))}
        return tuple(places[parent] for parent in self.parents.values())

    def children(self, name: str) -> set[str]:
        """Who hangs below that node, or below the root."""
        return {child for child, parent in self.parents.items() if parent == name}


def make(series: str, count: int, fanout: int | None) -> Shape:
    """`count` nodes hung as `./canopy up --fanout` hangs them."""
    tag = f"{series}{count}"
    root = f"{tag}-root"
    parents = {}
    for position in range(1, count + 1):
        above = shape.parent_of(position, fanout=fanout, root=root)
        parents[f"{tag}-n{position}"] = above if above == root else f"{tag}-{above}"
    return Shape(series, parents, root)


def series(name: str, depths: Sequence[int]) -> list[Shape]:
    """One of SERIES: binary trees and chains of these depths; flat trees with as many nodes as the binary ones."""
    counts = [2**depth - 1 for depth in depths]
    match name:
        case "tree":
            return [make(name, count, fanout=2) for count in counts]
        case "chain":
            return [make(name, depth, fanout=1) for depth in depths]
        case "flat":
            return [make(name, count, fanout=None) for count in counts]
    raise ValueError(f"no series {name!r}; there are: {', '.join(SERIES)}")


def shared(names: Sequence[str], size: int) -> list[list[str]]:
    """Nodes that share a process, `size` at most in each."""
    return [list(names[start : start + size]) for start in range(0, len(names), size)]
