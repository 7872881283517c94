"""A plan's limits, and one process's part of an allowance. Pure: the caller has the clock."""

import math
from dataclasses import dataclass, fields
from typing import Literal

Kind = Literal["requests", "tokens"]
SECONDS: dict[Kind, float] = {"requests": 60.0, "tokens": 86_400.0}  # from the first use on
PARTS = 50  # a process takes so small a part of what is left, but at least what it needs now
STREAMS = 32  # of one answer by one user, where the plan says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLimits:
    """See models.Plan; None: no limit."""

    name: str = ""
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    jobs_running: int | None = None
    jobs_waiting: int | None = None
    conversations: int | None = None
    streams: int | None = None

    def of(self, kind: Kind) -> int | None:
        """The limit of an allowance."""
        return self.requests_per_minute if kind == "requests" else self.tokens_per_day

    @property
    def jobs_open(self) -> int | None:
        """How many jobs can be open at most: the root lets no more run, and no more wait."""
        if self.jobs_running is None or self.jobs_waiting is None:
            return None
        return self.jobs_running + self.jobs_waiting


UNLIMITED = PlanLimits()
LIMITS = tuple(field.name for field in fields(PlanLimits) if field.name != "name")


@dataclass(frozen=True, slots=True)
class Lease:
    """What the database has granted of an allowance, whose time ends at `ends` (Unix seconds)."""

    ends: float
    granted: int
    left: int


@dataclass(slots=True)
class Meter:
    """One user's allowance at this process.

    `local`: granted and not used; below 0: used and not counted in the database yet. `left`: in the
    database, when it was asked last. Others only take from it, so it is never more.
    """

    limit: int
    ends: float = 0.0
    local: int = 0
    left: int = 0

    def use_limit(self, limit: int) -> None:
        """The plan says so now. After a change the database is asked again."""
        if limit != self.limit:
            self.limit, self.left = limit, max(0, self.left + limit - self.limit)

    def take(self, amount: int, now: float) -> bool:
        """Uses so much of what was granted; False if that is not enough."""
        self._forget_old(now)
        if self.local < amount:
            return False
        self.local -= amount
        return True

    def is_exhausted(self, amount: int, now: float) -> bool:
        """True if the database, too, cannot grant so much before `ends`."""
        return now < self.ends and self.local + self.left < amount

    def owed(self) -> int:
        """What the database has not counted yet."""
        return max(0, -self.local)

    def wanted(self, amount: int) -> int:
        """How much to be granted for that, and for some of what follows."""
        missing = amount - max(0, self.local)
        return max(missing, self.left // PARTS)

    def granted(self, lease: Lease, owed: int) -> None:
        """The database has counted `owed`, and has granted this."""
        if lease.ends != self.ends:
            self.local = -self.owed()
        self.local += owed + lease.granted
        self.ends, self.left = lease.ends, lease.left

    def give_back(self, amount: int) -> None:
        """It was not used after all; negative: more was used."""
        self.local += amount

    def remaining(self) -> int:
        """As far as this process knows."""
        return max(0, self.local + self.left)

    def seconds(self, now: float) -> int:
        """Whole seconds until the allowance is new."""
        return max(1, math.ceil(self.ends - now))

    def _forget_old(self, now: float) -> None:
        if now >= self.ends:
            self.local = min(0, self.local)
