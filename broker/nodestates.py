"""What nodes say of themselves, as far as it is believed: by registered nodes, lately, on this machine's clock.

No wall clock decides anything here. How old a state is follows from this process's monotonic clock; the nodes' own
clocks are compared with this machine's, and the difference is shown to people.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from broker.wire import NodeState

SILENT_SECONDS = 15.0  # nodes repeat their state every few seconds; one that is silent for so long counts as down
CLOCK_SAMPLES = 8  # states whose delay is looked at: the least of them is next to none
CLOCK_WARNING = 2.0  # seconds by which a node's clock may differ before anybody is warned
MOST_NODES = 10_000  # remembered


@dataclass(slots=True)
class _Heard:
    """One node. `state`: the latest, with its times on this machine's clock; `heard`: when it came, on the monotonic
    clock.
    """

    state: NodeState
    heard: float
    behind: deque[float] = field(
        default_factory=lambda: deque(maxlen=CLOCK_SAMPLES)
    )  # arrival minus `sent`
    warned: bool = False

    @property
    def clock_difference(self) -> float:
        """Seconds by which the node's clock is ahead of this machine's. Each sample is too low by what the message
        took, so the one that took least counts.
        """
        return -min(self.behind)


class NodeStates:
    """The latest state of every node, by name."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}

    def add(self, state: NodeState) -> float | None:
        """A state has come. Returns the difference of that node's clock in seconds if it is to be warned about: it is
        above CLOCK_WARNING, and was not before.
        """
        now = time.monotonic()
        arrived = time.time()
        heard = self._heard.get(state.name)
        if heard is None or (heard.state.host, heard.state.pid) != (state.host, state.pid):
            self._make_room()
            heard = self._heard[state.name] = _Heard(state, now)
        heard.state, heard.heard = moved(state, arrived), now
        heard.behind.append(arrived - state.sent)
        before, heard.warned = heard.warned, abs(heard.clock_difference) > CLOCK_WARNING
        return heard.clock_difference if heard.warned and not before else None

    def remove(self, name: str) -> None:
        """That node has ended."""
        self._heard.pop(name, None)

    def recent(self) -> dict[str, NodeState]:
        """The states that are not older than SILENT_SECONDS, their times moved to this machine's clock."""
        self._forget_silent(time.monotonic())
        return {name: each.state for name, each in self._heard.items()}

    def clock_differences(self) -> dict[str, float]:
        """Seconds by which each node's clock is ahead of this machine's, to a tenth."""
        self._forget_silent(time.monotonic())
        return {name: round(each.clock_difference, 1) for name, each in self._heard.items()}

    def _forget_silent(self, now: float) -> None:
        silent = [name for name, each in self._heard.items() if now - each.heard > SILENT_SECONDS]
        for name in silent:
            del self._heard[name]

    def _make_room(self) -> None:
        while len(self._heard) >= MOST_NODES:
            del self._heard[next(iter(self._heard))]


def moved(state: NodeState, arrived: float) -> NodeState:
    """The state with its times on this machine's clock, on which it arrived at `arrived`, in Unix seconds."""
    return msgspec.structs.replace(
        state, started=state.started + arrived - state.sent, sent=arrived
    )


def warnings_of_clocks(differences: Mapping[str, float]) -> list[str]:
    """A sentence for each node whose clock differs by more than CLOCK_WARNING."""
    found = []
    for name, seconds in differences.items():
        if abs(seconds) > CLOCK_WARNING:
            direction = "ahead of" if seconds > 0 else "behind"
            found.append(
                f"{name}: its clock is {abs(seconds):.0f} s {direction} this machine's; set it (NTP)"
            )
    return found
