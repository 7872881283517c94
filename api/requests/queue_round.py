"""Which queues of a model's tree are measured now, and what is known of the others. Pure.

The broker is asked about each queue, so a measurement of all queues of a large tree would take
longer than it is true. Jobs wait at the root, as a rule: those queues are measured each time, and
the others in turn.
"""

from collections.abc import Collection, Iterable, Mapping

IN_TURN = 32  # queues of a measurement beside the roots'


class QueueRound:
    """The depths of queues as they were last measured."""

    def __init__(self) -> None:
        self._depths: dict[str, int | None] = {}  # None: no such queue; least recent first

    def due(self, roots: Collection[str], others: Iterable[str]) -> list[str]:
        """The queues to measure now; forgets all that are not named here."""
        below = [queue for queue in others if queue not in roots]
        new = [queue for queue in below if queue not in self._depths]
        known = set(below).union(roots)
        self._depths = {queue: each for queue, each in self._depths.items() if queue in known}
        old = [queue for queue in self._depths if queue not in roots]
        return [*sorted(roots), *(sorted(new) + old)[:IN_TURN]]

    def measured(self, queues: Iterable[str], depths: Mapping[str, int]) -> None:
        """What the broker says: `depths` lacks the queues that do not exist."""
        for queue in queues:
            self._depths.pop(queue, None)
            self._depths[queue] = depths.get(queue)

    def depth(self, queue: str) -> int:
        """Jobs ready in it, as far as is known."""
        return self._depths.get(queue) or 0

    def is_missing(self, queue: str) -> bool:
        """True if the broker has no such queue."""
        return queue in self._depths and self._depths[queue] is None
