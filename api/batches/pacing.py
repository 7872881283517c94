"""How many lines of batches run at a time: the tree is kept full, but not for interactive users.

Some slots are kept free, so that an interactive request finds one at once: it need not wait for
the end of a line. What others run, or wait for, is left to them.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping

from broker.client import Client
from broker.node_state import NodeState

RESERVED = 8  # one in so many slots is kept free
MOST_IN_FLIGHT = 512  # lines of this process
RECHECK_SECONDS = 0.5


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


class Pacer:
    """Lets lines start. All batches of this process share it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._in_flight: Counter[str] = Counter()
        self._changed = asyncio.Event()

    async def acquire(self, model: str) -> None:
        """Returns when one more line of the model may start; `release` ends it."""
        while not self._has_room(model):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_SECONDS):
                    await self._changed.wait()
        self._in_flight[model] += 1

    def release(self, model: str) -> None:
        """A line of the model has ended."""
        self._in_flight[model] -= 1
        if not self._in_flight[model]:
            del self._in_flight[model]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _has_room(self, model: str) -> bool:
        if self._in_flight.total() >= MOST_IN_FLIGHT:
            return False
        mine = self._in_flight[model]
        slots, busy = load(self._client.nodes(), model)
        return mine < most_lines(slots, busy, mine)
