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
REMEMBERED_PLANS = 100_000  # users with a plan; a forgotten one counts again with the next job


class Cap:
    """`fixed`: so many jobs a user, 0: any number (`unlimited`); AUTOMATIC: see the module.

    `plans`: whether what jobs say of their users' plans counts, too.
    """

    def __init__(self, fixed: int | None = AUTOMATIC, *, plans: bool = False) -> None:
        self.unlimited = fixed == 0
        self.with_plans = plans
        self.any_plan = False  # some user has a plan's limit
        self._plans: OrderedDict[str, int] = OrderedDict()  # by user with one, the latest last
        self._fixed = fixed
        self._last_job: OrderedDict[str, float] = OrderedDict()  # by user, the latest last

    def job_arrived(self, user: str, now: float) -> None:
        """A job of that user arrived: the user is active."""
        self._last_job[user] = now
        self._last_job.move_to_end(user)
        if len(self._last_job) > REMEMBERED:
            self._last_job.popitem(last=False)

    def plan_says(self, user: str, most: int | None) -> None:
        """The user's newest job says how many of them may run; None: as many as there are slots."""
        if not self.with_plans:
            return
        self._plans.pop(user, None)
        if most is not None:
            self._plans[user] = max(1, most)
        if len(self._plans) > REMEMBERED_PLANS:
            self._plans.popitem(last=False)
        self.any_plan = bool(self._plans)

    def limit_of(self, user: str, limit: int | None) -> int | None:
        """How many jobs of that user may run. `limit`: what `limit` says for everybody."""
        plan = self._plans.get(user)
        if plan is None or limit is None:
            return limit if plan is None else plan
        return min(plan, limit)

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
