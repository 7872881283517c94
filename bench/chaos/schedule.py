"""What goes wrong, when and where. Pure: a seed decides it, so that a run can be repeated."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from topology import shape

ROOT = "root"
CALM = 3.0  # seconds without faults at the beginning

# kind of fault -> how many seconds it lasts, at least and at most
KINDS: Mapping[str, tuple[float, float]] = {
    "kill leaf": (0, 0),
    "kill inner": (0, 0),
    "kill root": (0, 0),
    "kill API": (0, 0),
    "kill broker": (0, 0),
    "stop leaf": (5, 30),
    "stop inner": (5, 30),
    "stop root": (5, 30),
    "cut node": (0, 0),
    "cut API": (0, 0),
    "drain": (3, 10),
    "attach": (3, 10),
    "rolling restart": (0, 0),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, `at` seconds after the load began."""

    at: float
    kind: str
    target: str
    seconds: float = 0.0
    parent: str = ""  # of an attach

    def __str__(self) -> str:
        parent = f" below {self.parent}" if self.parent else ""
        duration = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.at:6.1f} s  {self.kind} {self.target}{parent}{duration}"


@dataclass(frozen=True)
class Tree:
    """The tree that is disturbed: child -> parent."""

    parents: Mapping[str, str]

    @classmethod
    def of(cls, nodes: int, fanout: int) -> "Tree":
        """The tree of `canopy up --nodes N --fanout F`."""
        numbers = range(1, nodes + 1)
        return cls({f"n{i}": shape.parent_of(i, fanout=fanout, root=ROOT) for i in numbers})

    @property
    def leaves(self) -> list[str]:
        return [name for name in self.parents if name not in self.parents.values()]

    @property
    def inner(self) -> list[str]:
        return [name for name in self.parents if name in self.parents.values()]

    def new_parents(self, name: str) -> list[str]:
        """Where `name` could hang instead: anywhere but below itself."""
        candidates = (ROOT, *self.parents)
        return [
            candidate
            for candidate in candidates
            if candidate != self.parents[name] and name not in self.path_to_root(candidate)
        ]

    def path_to_root(self, name: str) -> list[str]:
        path = [name]
        while path[-1] in self.parents:
            path.append(self.parents[path[-1]])
        return path


def make(
    seed: int, seconds: float, per_minute: float, tree: Tree, kinds: Sequence[str]
) -> list[Fault]:
    """The faults of a run, by time: evenly spread with a random part, every kind in its turn.

    The tree needs an inner node and a leaf.
    """
    rng = random.Random(seed)
    count = max(1, round(seconds * per_minute / 60))
    interval = (seconds - CALM) / count
    deck: list[str] = []
    faults = []
    for index in range(count):
        if not deck:
            deck = rng.sample(list(kinds), len(kinds))
        at = CALM + interval * (index + rng.uniform(0, 0.8))
        faults.append(_fault(rng, round(at, 1), deck.pop(), tree))
    return faults


def _fault(rng: random.Random, at: float, kind: str, tree: Tree) -> Fault:
    targets = {
        "leaf": tree.leaves,
        "inner": tree.inner,
        "root": [ROOT],
        "API": ["api"],
        "broker": ["broker"],
        "node": list(tree.parents),
        "drain": list(tree.parents),
        "attach": list(tree.parents)[1:],
        "restart": ["all"],
    }
    target = rng.choice(targets[kind.rsplit(maxsplit=1)[-1]])
    seconds = round(rng.uniform(*KINDS[kind]), 1)
    parent = rng.choice(tree.new_parents(target)) if kind == "attach" else ""
    return Fault(at, kind, target, seconds, parent)
