"""The tree that is simulated, and how slow its messages are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from topology import shape
from topology.tree import ancestors

Place = Literal["root", "inner", "leaf"]
ROOT = "root"


@dataclass(frozen=True)
class Plan:
    """Nodes with their parents, `slots` each; the root has none. Raises ValueError if no tree."""

    parents: Mapping[str, str]
    slots: int = 1

    def __post_init__(self) -> None:
        if not self.parents or self.slots < 1:
            raise ValueError("a tree has at least one node, and a node one slot")
        for node in self.parents:
            if node == ROOT or ROOT not in ancestors(self.parents, node):
                raise ValueError(f"{node!r} does not hang below {ROOT!r}")

    @classmethod
    def of(cls, nodes: int, *, fanout: int | None = None, slots: int = 1) -> "Plan":
        """The shape of `canopy up --nodes NODES --fanout FANOUT --slots SLOTS`."""
        names = enumerate(shape.node_names(nodes), 1)
        return cls({name: shape.parent_of(i, fanout=fanout) for i, name in names}, slots)

    @property
    def capacity(self) -> int:
        """Slots of the whole tree."""
        return len(self.parents) * self.slots

    def place(self, node: str) -> Place:
        """Where in the tree the node is."""
        if node == ROOT:
            return "root"
        return "inner" if node in self.parents.values() else "leaf"


@dataclass(frozen=True, slots=True)
class Delays:
    """In mean service times. `hop`: a message from node to node, a job or counters.

    `report`: a node reports its counters at most once in so long, the first time after a pause at
    once, as nodes do.
    """

    hop: float = 0.0
    report: float = 0.0
