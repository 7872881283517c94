"""Who may have one more job waiting. Pure: no clock, no I/O.

Up to a limit, jobs wait whoever sent them. Beyond it, a user may still have a fair share waiting:
the limit divided by the users who have jobs waiting, themselves and one more to come included. So
whoever fills the backlog gets no further, and everybody else is let in. However many users do the
same, CEILING times the limit is never exceeded.

One API process knows its own users only, and of other processes' jobs the number. So it divides the
part of the limit that corresponds to its part of the jobs. The same rule bounds the bytes of the
prompts that wait.
"""

from dataclasses import dataclass, field
from enum import Enum

CEILING = 4  # times the limit


class Verdict(Enum):
    """What becomes of one more job."""

    ADMITTED = "admitted"
    USER_FULL = "user_full"  # its user has a fair share waiting already
    FULL = "full"  # nobody's job is taken


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


def decide(usage: Usage, wanted: int, limit: int, least: int) -> Verdict:
    """Whether `wanted` more may wait."""
    after = usage.total + wanted
    if after <= limit:
        return Verdict.ADMITTED
    if after > CEILING * limit:
        return Verdict.FULL
    if usage.mine + wanted <= usage.fair_share(limit, least):
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
