"""How fast nodes work, and how often they failed lately: from the absolute counters they publish.

Each API process counts for itself, as it hears every node anyway. A node's first state only sets
the mark; a new process under the same name counts from 0.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.node_state import NodeState

RATE_SECONDS = 5.0  # over which rates are means
ERROR_SECONDS = 15 * 60.0  # for which failed runs are remembered
MAX_NODES = 10_000  # remembered


@dataclass(frozen=True, slots=True)
class Rates:
    """Means over RATE_SECONDS, a second."""

    tokens: float = 0.0
    jobs: float = 0.0


@dataclass(slots=True)
class _Meter:
    """One node: its counters over all its processes. Times are on one monotonic clock."""

    process: tuple[str, int]
    tokens: int
    finished: int
    failed: int
    total_tokens: int = 0
    total_jobs: int = 0
    marks: deque[tuple[float, int, int]] = field(default_factory=deque)  # when, tokens, jobs
    failures: deque[tuple[float, int]] = field(default_factory=deque)  # when, how many

    def observe(self, state: NodeState, now: float) -> None:
        process = (state.host, state.pid)
        if process != self.process:
            self.process = process
            self.tokens = self.finished = self.failed = 0
        self.total_tokens += max(0, state.tokens - self.tokens)
        self.total_jobs += max(0, state.finished - self.finished)
        if state.failed > self.failed:
            self.failures.append((now, state.failed - self.failed))
        self.tokens, self.finished, self.failed = state.tokens, state.finished, state.failed

    def mark(self, now: float) -> None:
        self.marks.append((now, self.total_tokens, self.total_jobs))
        while len(self.marks) > 2 and now - self.marks[1][0] >= RATE_SECONDS:
            self.marks.popleft()
        while self.failures and now - self.failures[0][0] > ERROR_SECONDS:
            self.failures.popleft()

    def rates(self) -> Rates:
        if len(self.marks) < 2:
            return Rates()
        (began, tokens, jobs), (now, latest_tokens, latest_jobs) = self.marks[0], self.marks[-1]
        seconds = max(now - began, 0.001)
        return Rates(
            _rounded((latest_tokens - tokens) / seconds),
            round((latest_jobs - jobs) / seconds, 2),
        )

    def errors(self) -> int:
        return sum(count for _, count in self.failures)


class NodeRates:
    """The rates of all nodes."""

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}

    def observe(self, states: Mapping[str, NodeState], now: float) -> None:
        """Takes the nodes' states of this moment; call it about once a second."""
        for name, state in states.items():
            meter = self._meters.get(name)
            if meter is None:
                meter = self._add(name, state)
            meter.observe(state, now)
        for name, meter in list(self._meters.items()):
            meter.mark(now)
            if name not in states and not meter.failures:
                del self._meters[name]

    def rates(self, name: str) -> Rates:
        """Of that node; zeros if it is not known."""
        meter = self._meters.get(name)
        if meter is None:
            return Rates()
        return meter.rates()

    def errors(self, name: str) -> int:
        """Failed runs of that node in the last ERROR_SECONDS."""
        meter = self._meters.get(name)
        if meter is None:
            return 0
        return meter.errors()

    def all_errors(self) -> int:
        """Failed runs of all nodes, also of those that are gone."""
        return sum(meter.errors() for meter in self._meters.values())

    def _add(self, name: str, state: NodeState) -> _Meter:
        while len(self._meters) >= MAX_NODES:
            del self._meters[next(iter(self._meters))]
        process = (state.host, state.pid)
        meter = _Meter(process, state.tokens, state.finished, state.failed)
        self._meters[name] = meter
        return meter


def _rounded(rate: float) -> float:
    """With the digits that a person reads, so that small changes are none."""
    if rate < 10:
        return round(rate, 1)
    return float(round(rate))
