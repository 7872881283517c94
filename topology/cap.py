"""How many jobs of one user may run at once. Pure: the caller has the clock.

Running jobs are not interrupted, so a user alone with the tree who takes every slot makes the next one wait for a whole
job to end. While several are about, one slot in eight is therefore left to the others.
"""

from collections import OrderedDict

AUTOMATIC = None
LATELY = 60.0  # seconds for which a user counts as being about
LEFT = 8  # one slot in so many is left to others
FEW = 4  # slots below which none is
REMEMBERED = 1000  # users


class Cap:
    """`fixed`: so many jobs a user, 0: any number; AUTOMATIC: see the module."""

    def __init__(self, fixed: int | None = AUTOMATIC) -> None:
        self._fixed = fixed
        self._seen: OrderedDict[str, float] = (
            OrderedDict()
        )  # user -> when a job of theirs came, the latest last

    def seen(self, user: str, now: float) -> None:
        """A job of that user has come."""
        self._seen[user] = now
        self._seen.move_to_end(user)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def most(self, slots: int, now: float) -> int | None:
        """How many jobs of one user may run on so many slots now; None: any number."""
        if self._fixed is not AUTOMATIC:
            return self._fixed or None
        while self._seen and next(iter(self._seen.values())) < now - LATELY:
            self._seen.popitem(last=False)
        if len(self._seen) < 2 or slots < FEW:
            return None
        return slots - max(1, slots // LEFT)
