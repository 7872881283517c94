"""How fast each node writes, from its counters of two moments."""

from collections import deque
from collections.abc import Mapping

from broker.node_state import NodeState

WINDOW = 5.0  # seconds over which tokens are counted
_SAMPLES = 40  # a node publishes at most four states a second


class TokenRates:
    """Tokens a second of every node over the last WINDOW."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, int]]] = {}
        self._processes: dict[str, tuple[str, int]] = {}

    def add(self, states: Mapping[str, NodeState]) -> None:
        """Takes the nodes' latest states; those that are gone are forgotten."""
        for name in list(self._samples):
            if name not in states:
                del self._samples[name], self._processes[name]
        for name, state in states.items():
            process = (state.host, state.pid)
            if self._processes.get(name) != process:  # a new one counts from 0
                self._processes[name] = process
                self._samples[name] = deque(maxlen=_SAMPLES)
            self._add(self._samples[name], state)

    def of(self, name: str) -> float:
        """Tokens a second; 0 until two states are known."""
        samples = self._samples.get(name)
        if not samples or len(samples) < 2:
            return 0.0
        (began, before), (ended, after) = samples[0], samples[-1]
        if ended <= began:
            return 0.0
        return max(0.0, round((after - before) / (ended - began), 1))

    @staticmethod
    def _add(samples: deque[tuple[float, int]], state: NodeState) -> None:
        if samples and samples[-1][0] >= state.sent:
            return
        samples.append((state.sent, state.tokens))
        while len(samples) > 2 and samples[1][0] < state.sent - WINDOW:
            samples.popleft()
