"""The latest state of each registered node, with its times on this machine's clock.

No wall clock decides anything here. The age of a state is measured on this process's monotonic
clock; the nodes' own clocks are compared with this machine's, to show people the difference.
"""

import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from broker.model_supply import ModelSupply
from broker.node_state import NodeState

SILENT_SECONDS = 15.0  # a node that sends no state for so long counts as down
CLOCK_SAMPLES = 8  # states whose delays are compared: the smallest is close to zero
CLOCK_WARNING = 2.0  # seconds by which a node's clock may differ without a warning
MAX_NODES = 10_000  # remembered
LOOK_SECONDS = 0.2  # between two looks for silent nodes, which are a look at all nodes


@dataclass(slots=True)
class _Record:
    """One node: its latest state on this machine's clock, and when that came (monotonic clock)."""

    state: NodeState
    arrived: float
    delays: deque[float] = field(  # arrival on this machine's clock minus `sent` on the node's
        default_factory=lambda: deque(maxlen=CLOCK_SAMPLES)
    )
    warned: bool = False

    @property
    def clock_difference(self) -> float:
        """Seconds by which the node's clock is ahead of this machine's.

        Each delay includes the message's travel time, so the smallest one counts.
        """
        return -min(self.delays)


class NodeStates:
    """The latest state of every node, by name."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._supplies: defaultdict[str, ModelSupply] = defaultdict(ModelSupply)
        self._looked = 0.0  # for silent nodes (monotonic clock)
        self._lost: dict[str, None] = {}  # the nodes that fell silent, the latest last

    def add(self, state: NodeState) -> float | None:
        """Takes a state that has just arrived.

        Returns the difference of the node's clock in seconds if that needs a warning: it is above
        CLOCK_WARNING, and was not before.
        """
        now = time.monotonic()
        wall_now = time.time()
        record = self._records.get(state.name)
        if record is None or _process(record.state) != _process(state):
            self.remove(state.name)
            self._make_room()
            record = self._records[state.name] = _Record(state, now)
        else:
            self._count(record.state, -1)
        record.state = on_local_clock(state, wall_now)
        self._count(record.state, 1)
        record.arrived = now
        record.delays.append(wall_now - state.sent)
        difference = record.clock_difference
        warned_before = record.warned
        record.warned = abs(difference) > CLOCK_WARNING
        if record.warned and not warned_before:
            return difference
        return None

    def remove(self, name: str) -> None:
        """That node has ended."""
        record = self._records.pop(name, None)
        if record is not None:
            self._count(record.state, -1)
        self._lost.pop(name, None)

    def supply(self, model: str) -> ModelSupply:
        """What the nodes of `recent` offer for the model. To be read only."""
        self._forget_silent(time.monotonic())
        return self._supplies.get(model) or ModelSupply()

    def lost(self) -> frozenset[str]:
        """The nodes that were heard, and then fell silent without having said that they end."""
        self._forget_silent(time.monotonic())
        return frozenset(self._lost)

    def recent(self) -> dict[str, NodeState]:
        """The states not older than SILENT_SECONDS, with times on this machine's clock."""
        self._forget_silent(time.monotonic())
        return {name: record.state for name, record in self._records.items()}

    def names(self) -> set[str]:
        """The nodes of `recent`."""
        self._forget_silent(time.monotonic())
        return set(self._records)

    def knows(self, name: str) -> bool:
        """True if a state of that node came lately."""
        record = self._records.get(name)
        return record is not None and time.monotonic() - record.arrived <= SILENT_SECONDS

    def clock_differences(self) -> dict[str, float]:
        """Seconds by which each node's clock is ahead of this machine's, to a tenth."""
        self._forget_silent(time.monotonic())
        return {name: round(record.clock_difference, 1) for name, record in self._records.items()}

    def _forget_silent(self, now: float) -> None:
        if 0 <= now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for name, record in list(self._records.items()):
            if now - record.arrived > SILENT_SECONDS:
                self.remove(name)
                self._lost[name] = None
        while len(self._lost) > MAX_NODES:
            del self._lost[next(iter(self._lost))]

    def _count(self, state: NodeState, sign: int) -> None:
        supply = self._supplies[state.model]
        supply.add(state, sign)
        if not supply.states:
            del self._supplies[state.model]

    def _make_room(self) -> None:
        while len(self._records) >= MAX_NODES:
            self.remove(next(iter(self._records)))


def _process(state: NodeState) -> tuple[str, int]:
    return state.host, state.pid


def on_local_clock(state: NodeState, arrived: float) -> NodeState:
    """The state with its times on this machine's clock, on which it `arrived` (Unix seconds)."""
    return msgspec.structs.replace(
        state, started=state.started + arrived - state.sent, sent=arrived
    )


def warnings_of_clocks(differences: Mapping[str, float]) -> list[str]:
    """A sentence for each node whose clock differs by more than CLOCK_WARNING."""
    warnings = []
    for name, seconds in differences.items():
        if abs(seconds) > CLOCK_WARNING:
            direction = "behind"
            if seconds > 0:
                direction = "ahead of"
            warnings.append(
                f"{name}: its clock is {abs(seconds):.0f} s {direction} this machine's; "
                "set it (NTP)"
            )
    return warnings
