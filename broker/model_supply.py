"""What the nodes of one model offer, counted as their states come: nobody looks at all nodes."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.node_state import NodeState
from broker.wire import Task

_LIVE = ("idle", "busy")


@dataclass(slots=True)
class ModelSupply:
    """Sums over nodes: all count for `held`, those that run jobs now for the rest."""

    states: int = 0  # all nodes
    nodes: int = 0
    slots: int = 0
    free: int = 0
    held: int = 0  # jobs that wait inside nodes
    _tasks: Counter[Task] = field(default_factory=Counter)

    @property
    def tasks(self) -> frozenset[Task]:
        """What the nodes do; empty while there are none."""
        return frozenset(self._tasks)

    def add(self, state: NodeState, sign: int = 1) -> None:
        """Counts the node's state; -1: does not count it any more."""
        self.states += sign
        self.held += sign * state.held
        if not is_serving(state):
            return
        self.nodes += sign
        self.slots += sign * state.slots
        self.free += sign * (state.slots - min(state.running, state.slots))
        for task in state.tasks:
            self._tasks[task] += sign
            if not self._tasks[task]:
                del self._tasks[task]


def is_serving(state: NodeState) -> bool:
    """True for a node that runs jobs now; a root has no engine."""
    return state.engine != "none" and state.status in _LIVE


def supply_of(model: str, states: Iterable[NodeState]) -> ModelSupply:
    """What nodes in these states offer for `model`."""
    supply = ModelSupply()
    for state in states:
        if state.model == model:
            supply.add(state)
    return supply
