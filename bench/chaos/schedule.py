"""What goes wrong, when and where. Pure: a seed decides it, so that a run can be repeated."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from topology import shape

ROOT = "root"
NODES, FANOUT = 7, 2
NAMES = shape.node_names(NODES)  # n1 to n3 have children
CALM = 3.0  # seconds without faults at the beginning

# kind of fault -> how many seconds it lasts, at least and at most
KINDS: Mapping[str, tuple[float, float]] = {
    "kill node": (0, 0),
    "kill root": (0, 0),
    "kill API": (0, 0),
    "kill broker": (0, 0),
    "stop node": (5, 30),
    "stop root": (5, 30),
    "drain": (3, 10),
    "rolling restart": (0, 0),
}
KILLS = ("kill node", "kill root", "kill API", "kill broker")  # of a soak


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, `at` seconds after the load began."""

    at: float
    kind: str
    target: str
    seconds: float = 0.0

    def __str__(self) -> str:
        text = f"{self.at:6.1f} s  {self.kind} {self.target}"
        if self.seconds:
            text += f" for {self.seconds:.1f} s"
        return text


def make(seed: int, seconds: float, per_minute: float, kinds: Sequence[str]) -> list[Fault]:
    """The faults of a run, by time: evenly spread with a random part, every kind in its turn."""
    rng = random.Random(seed)
    count = max(1, round(seconds * per_minute / 60))
    interval = (seconds - CALM) / count
    deck: list[str] = []
    faults = []
    for index in range(count):
        if not deck:
            deck = rng.sample(list(kinds), len(kinds))
        at, kind = CALM + interval * (index + rng.uniform(0, 0.8)), deck.pop()
        targets = {"root": [ROOT], "API": ["api"], "broker": ["broker"], "restart": ["all"]}
        target = rng.choice(targets.get(kind.rsplit(maxsplit=1)[-1], NAMES))
        faults.append(Fault(round(at, 1), kind, target, round(rng.uniform(*KINDS[kind]), 1)))
    return faults
