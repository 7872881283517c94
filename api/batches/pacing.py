"""How many lines of batches run at a time: the tree is kept full, but not for interactive users.

Some slots are kept free, so that an interactive request finds one at once: it need not wait for
the end of a line. What others run, or wait for, is left to them.

Lines start one after the other, not together: those that start together end together, and in the
milliseconds of work that each of them makes, an interactive request would wait for all of it.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping

from broker.client import Client
from broker.node_state import NodeState

RESERVED = 8  # one in so many slots is kept free
MOST_IN_FLIGHT = 512  # lines of this process
RECHECK_SECONDS = 0.5
STATE_SECONDS = 0.5  # a node's state is not older, as a rule
SPACING = (0.002, 0.05)  # seconds between two starts, at least: where lines end fast, and slowly
MEASURED_ENDS = 32  # lines whose ends say how fast they end


def most_lines(slots: int, busy: int, mine: int) -> int:
    """How many lines of a model may be in flight; one at least, so that a batch always goes on.

    `busy`: jobs that run or wait in the tree, `mine` of them perhaps.
    """
    reserve = 0 if slots < 2 else -(-slots // RESERVED)
    others = max(0, busy - mine)
    return max(1, slots - reserve - others)


def load(states: Mapping[str, NodeState], model: str) -> tuple[int, int]:
    """A model's slots, and its jobs that run or wait in nodes."""
    slots = busy = 0
    for state in states.values():
        if state.model == model and state.status in ("idle", "busy"):
            slots += state.slots
            busy += state.running + state.held
    return slots, busy


class LinesInFlight:
    """One model's lines of this process. Pure: the caller has the clock (seconds)."""

    def __init__(self) -> None:
        self.count = 0
        self.next_start = 0.0  # no line starts earlier
        self._ends: deque[float] = deque(maxlen=MEASURED_ENDS)
        self._peak = self._former_peak = 0  # of `count` in this and the former STATE_SECONDS
        self._peak_since = 0.0

    def started(self, now: float) -> None:
        """One more; the next one starts later."""
        self.count += 1
        self.next_start = now + self.spacing()
        self._note_peak(now)

    def ended(self, now: float) -> None:
        """One less."""
        self._note_peak(now)
        self.count -= 1
        self._ends.append(now)

    def lately(self, now: float) -> int:
        """The most that the nodes' states may count: they are a little old."""
        self._note_peak(now)
        return max(self._peak, self._former_peak)

    def spacing(self) -> float:
        """Seconds between two starts: half of what is between two ends, so that no slot idles."""
        least, most = SPACING
        if len(self._ends) < 2:
            return least
        between_ends = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return min(most, max(least, between_ends / 2))

    def _note_peak(self, now: float) -> None:
        if now >= self._peak_since + STATE_SECONDS:
            is_recent = now < self._peak_since + 2 * STATE_SECONDS
            self._former_peak = self._peak if is_recent else self.count
            self._peak, self._peak_since = self.count, now
        self._peak = max(self._peak, self.count)


class Pacer:
    """Lets lines start. All batches of this process share it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._models: dict[str, LinesInFlight] = {}
        self._total = 0
        self._changed = asyncio.Event()

    async def acquire(self, model: str) -> None:
        """Returns when one more line of the model may start; `release` ends it."""
        while (seconds := self._wait(model)) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
        self._lines(model).started(time.monotonic())
        self._total += 1

    def release(self, model: str) -> None:
        """A line of the model has ended."""
        self._models[model].ended(time.monotonic())
        self._total -= 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _lines(self, model: str) -> LinesInFlight:
        """The model's lines; those of models without any are forgotten."""
        lines = self._models.get(model)
        if lines is None:
            self._models = {name: other for name, other in self._models.items() if other.count}
            lines = self._models[model] = LinesInFlight()
        return lines

    def _wait(self, model: str) -> float:
        """Seconds until a line may start, or is to be asked for again; 0 for now."""
        if self._total >= MOST_IN_FLIGHT:
            return RECHECK_SECONDS
        lines, now = self._lines(model), time.monotonic()
        slots, busy = load(self._client.nodes(), model)
        if lines.count >= most_lines(slots, busy, lines.lately(now)):
            return RECHECK_SECONDS
        return lines.next_start - now
