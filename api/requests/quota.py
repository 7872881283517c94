"""Whether a user may have one more job waiting. Pure: no clock, no I/O.

Up to a limit, everybody's jobs may wait. Beyond it, a user may still have a fair share waiting: the
limit divided by the users with waiting jobs, including this user and one more to come. So a user
who fills the backlog is stopped, and all others are admitted. However many users do so, CEILING
times the limit is never exceeded.

An API process knows only its own users, and only the number of other processes' jobs. So it divides
the part of the limit that corresponds to its part of the jobs. The same rule bounds the bytes of
the waiting prompts.
"""

from dataclasses import dataclass, field
from enum import Enum

CEILING = 4  # times the limit


class Verdict(Enum):
    """The decision about one more job."""

    ADMITTED = "admitted"
    USER_FULL = "user_full"  # its user has a fair share waiting already
    FULL = "full"  # nobody's job is admitted


@dataclass(frozen=True, slots=True)
class Usage:
    """What waits, in jobs or in bytes, as one API process sees it before one more is added."""

    total: int  # everybody's, in all API processes
    here: int  # of it, in this process
    mine: int  # of that, the user's
    others: int  # other users who have something waiting in this process

    def fair_share(self, limit: int, least: int) -> int:
        """What the user may have waiting here beyond the limit; never less than `least`."""
        part = min(1.0, self.here / self.total) if self.total > 0 else 1.0
        return max(least, int(limit * part / (self.others + 2)))


def decide(usage: Usage, amount: int, limit: int, least: int) -> Verdict:
    """Whether `amount` more may wait."""
    after = usage.total + amount
    if after <= limit:
        return Verdict.ADMITTED
    if after > CEILING * limit:
        return Verdict.FULL
    if usage.mine + amount <= usage.fair_share(limit, least):
        return Verdict.ADMITTED
    return Verdict.USER_FULL


@dataclass(slots=True)
class Tally:
    """What each user has waiting in this process. Users who have nothing waiting are forgotten."""

    users: dict[str, int] = field(default_factory=dict)
    total: int = 0

    def add(self, user: str, amount: int) -> None:
        """One more job, or its bytes."""
        self.users[user] = self.users.get(user, 0) + amount
        self.total += amount

    def remove(self, user: str, amount: int) -> None:
        """The same amount as was added."""
        self.users[user] -= amount
        self.total -= amount
        if self.users[user] == 0:
            del self.users[user]

    def usage(self, user: str, elsewhere: int = 0) -> Usage:
        """As that user's next job finds it; `elsewhere`: what waits in other processes."""
        mine = self.users.get(user, 0)
        others = len(self.users) - (mine > 0)
        return Usage(total=self.total + elsewhere, here=self.total, mine=mine, others=others)
