"""How a topic exchange matches keys.

RabbitMQ (3.10 at least) checks a user's right to a routing key, but not to further keys that a
message has in its CC and BCC headers, so that it may reach queues that its sender may not write to.
The key with which it arrives is still the checked one, and is not what the queue is bound with.
"""

from collections import defaultdict

from topology import names

# The topic exchanges to which users with few rights may publish.
GUARDED = frozenset((names.EVENTS_EXCHANGE, names.JOINED_EXCHANGE))


def matches(pattern: str, key: str) -> bool:
    """Topic matching: `*` is one word, `#` is any number of them (also none)."""

    def match(pattern: list[str], key: list[str]) -> bool:
        if not pattern:
            return not key
        if pattern[0] == "#":
            return any(match(pattern[1:], key[skip:]) for skip in range(len(key) + 1))
        return bool(key) and pattern[0] in ("*", key[0]) and match(pattern[1:], key[1:])

    return match(pattern.split("."), key.split("."))


class Bound:
    """What one session has bound its queues with."""

    def __init__(self) -> None:
        self._keys: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def add(self, queue: str, exchange: str, key: str) -> None:
        self._keys[queue, exchange].add(key)

    def remove(self, queue: str, exchange: str, key: str) -> None:
        self._keys[queue, exchange].discard(key)

    def expects(self, queue: str, exchange: str, key: str) -> bool:
        """False for a message that came around the rights of its sender."""
        patterns = self._keys.get((queue, exchange))
        if not patterns or key in patterns:
            return True  # bound by another session, or as it should be
        return any(matches(pattern, key) for pattern in patterns)
