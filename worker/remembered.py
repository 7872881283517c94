"""What a node has heard of jobs that may still come: the latest of it, so that nobody can fill its memory."""

from collections import OrderedDict
from collections.abc import Hashable

REMEMBERED = 10_000  # cancels for jobs that have not arrived yet; reply queues that are gone

Remembered = OrderedDict[Hashable, int | None]  # the attempts below that number; None: all


def remember(memory: Remembered, key: Hashable, value: int | None) -> None:
    """Keeps the greatest value of each key, and the newest keys."""
    known = memory.get(key, 0)
    memory[key] = None if value is None or known is None else max(value, known)
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
