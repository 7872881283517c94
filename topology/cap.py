"""How many jobs of one user may run at once. Pure: the caller has the clock.

Running jobs are not interrupted, so if one user took every slot, the next user would wait for a
whole job to end. While several users are active, one slot in eight is therefore left to the others.
"""

from collections import OrderedDict

AUTOMATIC = None
ACTIVE_SECONDS = 60.0  # how long a user counts as active after a job
RESERVE_ONE_IN = 8  # one slot in so many is left to others
MIN_SLOTS = 4  # with fewer slots there is no cap
REMEMBERED = 1000  # users


class Cap:
    """`fixed`: so many jobs a user, 0: any number (`unlimited`); AUTOMATIC: see the module."""

    def __init__(self, fixed: int | None = AUTOMATIC) -> None:
        self.unlimited = fixed == 0
        self._fixed = fixed
        self._last_job: OrderedDict[str, float] = OrderedDict()  # by user, the latest last

    def job_arrived(self, user: str, now: float) -> None:
        """A job of that user arrived: the user is active."""
        self._last_job[user] = now
        self._last_job.move_to_end(user)
        if len(self._last_job) > REMEMBERED:
            self._last_job.popitem(last=False)

    def limit(self, slots: int, now: float) -> int | None:
        """How many jobs of one user may run on so many slots now; None: any number."""
        if self._fixed is not AUTOMATIC:
            return self._fixed or None
        self._forget_inactive(now)
        if len(self._last_job) < 2 or slots < MIN_SLOTS:
            return None
        return slots - max(1, slots // RESERVE_ONE_IN)

    def _forget_inactive(self, now: float) -> None:
        while self._last_job and next(iter(self._last_job.values())) < now - ACTIVE_SECONDS:
            self._last_job.popitem(last=False)
