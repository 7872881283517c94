"""What goes wrong, when and where: decided from a seed, pure, so that a run can be repeated."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from topology import shape

ROOT = "root"
CALM = 3.0  # seconds at the beginning in which nothing happens
FAR = {
    "far1": "n1",
    "far2": "far1",
}  # nodes behind a proxy of the benchmark's own, and what they hang below

# kind -> how long it lasts in seconds, at least and at most
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
    "freeze node": (5, 30),
    "drain": (3, 10),
    "attach": (3, 10),
    "alarm": (2, 6),
    "rolling restart": (0, 0),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, `at` seconds after the load began, for `seconds`. `parent`: of an attach."""

    at: float
    kind: str
    target: str
    seconds: float = 0.0
    parent: str = ""

    def __str__(self) -> str:
        below = f" below {self.parent}" if self.parent else ""
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.at:6.1f} s  {self.kind} {self.target}{below}{lasting}"


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault from its beginning until everything was as before, in moments of the ledger's clock.

    `made`: False if it could not be made at all; `problem`: why, or what did not heal.
    """

    fault: Fault
    began: float
    ended: float
    problem: str = ""
    made: bool = True


@dataclass(frozen=True)
class Tree:
    """The tree that is disturbed: child -> parent, the nodes behind proxies included."""

    parents: Mapping[str, str]

    @classmethod
    def of(cls, nodes: int, fanout: int, far: Mapping[str, str] = FAR) -> "Tree":
        """The tree of `canopy up --nodes N --fanout F`, and the far nodes."""
        own = {
            f"n{place}": shape.parent_of(place, fanout=fanout, root=ROOT)
            for place in range(1, nodes + 1)
        }
        return cls({**own, **far})

    @property
    def own(self) -> list[str]:
        """The nodes that `up` started."""
        return [name for name in self.parents if name not in FAR]

    @property
    def leaves(self) -> list[str]:
        """Those of them with nothing below."""
        return [name for name in self.own if name not in self.parents.values()]

    @property
    def inner(self) -> list[str]:
        """Those of them with something below."""
        return [name for name in self.own if name in self.parents.values()]

    def new_parents(self, name: str) -> list[str]:
        """Where `name` could hang instead: anywhere but below itself."""
        return [
            each
            for each in (ROOT, *self.own)
            if each != self.parents[name] and name not in self.line(each)
        ]

    def line(self, name: str) -> list[str]:
        """`name` and everything above it."""
        above = [name]
        while above[-1] in self.parents:
            above.append(self.parents[above[-1]])
        return above


def make(
    seed: int, seconds: float, per_minute: float, nodes: int, fanout: int, kinds: Sequence[str]
) -> list[Fault]:
    """The faults of a run, by time. They are spread evenly with a random part, and every kind gets its turn.

    The same arguments give the same faults. `nodes`: at least 3, so that there are an inner node and leaves.
    """
    dice = random.Random(seed)
    tree = Tree.of(nodes, fanout)
    count = max(1, round(seconds * per_minute / 60))
    part = (seconds - CALM) / count
    deck: list[str] = []
    found = []
    for index in range(count):
        deck = deck or dice.sample(list(kinds), len(kinds))
        at = CALM + part * (index + dice.uniform(0, 0.8))
        found.append(_fault(dice, round(at, 1), deck.pop(), tree))
    return found


def _fault(dice: random.Random, at: float, kind: str, tree: Tree) -> Fault:
    places = {
        "leaf": tree.leaves, "inner": tree.inner, "root": [ROOT], "API": ["api"], "broker": ["broker"],
        "node": list(FAR), "drain": [*tree.own, *FAR], "attach": tree.own[1:], "alarm": ["broker"], "restart": ["all"],
    }  # fmt: skip
    target = dice.choice(places[kind.rsplit(maxsplit=1)[-1]])
    seconds = round(dice.uniform(*KINDS[kind]), 1)
    parent = dice.choice(tree.new_parents(target)) if kind == "attach" else ""
    return Fault(at, kind, target, seconds, parent)
