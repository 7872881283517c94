"""What a node has heard about jobs that may still arrive, bounded to the latest."""

from collections import OrderedDict
from collections.abc import Hashable

MAX_KEYS = 10_000  # for each kind of message

ALL_ATTEMPTS = None


class RecentAttempts:
    """For each key, such as a request: the attempts that a message was about, below a number."""

    def __init__(self) -> None:
        self._below: OrderedDict[Hashable, int | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._below)

    def add(self, key: Hashable, below: int | None = ALL_ATTEMPTS) -> None:
        """Remembers the attempts of `key` below that number, and whatever was known before."""
        known = self._below.get(key, 0)
        if below is ALL_ATTEMPTS or known is ALL_ATTEMPTS:
            self._below[key] = ALL_ATTEMPTS
        else:
            self._below[key] = max(below, known)
        while len(self._below) > MAX_KEYS:
            self._below.popitem(last=False)

    def covers(self, key: Hashable, attempt: int = 0) -> bool:
        """True if a message was about that attempt of `key`."""
        if key not in self._below:
            return False
        below = self._below[key]
        return below is ALL_ATTEMPTS or attempt < below

    def clear(self) -> None:
        self._below.clear()
