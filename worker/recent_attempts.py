"""What a node has heard about jobs that may still arrive, bounded to the latest."""

from collections import OrderedDict
from collections.abc import Hashable

MAX_KEYS = 10_000  # for each kind of message

ALL_ATTEMPTS = None


class RecentAttempts(OrderedDict[Hashable, int | None]):
    """For each key, such as a request: the attempts that a message was about, below a number."""

    def add(self, key: Hashable, below: int | None = ALL_ATTEMPTS) -> None:
        """Remembers the attempts of `key` below that number, and whatever was known before."""
        known = self.get(key, 0)
        if below is ALL_ATTEMPTS or known is ALL_ATTEMPTS:
            self[key] = ALL_ATTEMPTS
        else:
            self[key] = max(below, known)
        while len(self) > MAX_KEYS:
            self.popitem(last=False)

    def covers(self, key: Hashable, attempt: int = 0) -> bool:
        """True if a message was about that attempt of `key`."""
        if key not in self:
            return False
        below = self[key]
        return below is ALL_ATTEMPTS or attempt < below
