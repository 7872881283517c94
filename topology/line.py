"""The line of waiting jobs: who is next, and what place everybody has. Pure: no clock, no I/O, no broker.

Jobs that go on after an interruption come first. Then interactive jobs come before batch jobs, and inside a class
users are served by start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996): a job's tag
is the virtual time at which its user may have it, and lies behind the tag of that user's job before by work / share.
The smallest tag is next; virtual time is the tag of the job that was taken last. So a user who comes back after a pause
is next, without getting what was not used in the meantime, and whoever floods the line waits behind their own jobs.
"""

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

T = TypeVar("T")
CLASSES = ("interactive", "batch")  # in the order in which they are served
MOST_COST = 1e12  # of one job: more would take all precision from the tags of everybody behind it
FORGET_BEYOND = 1000  # users who wait for nothing and are remembered


@dataclass(frozen=True, slots=True)
class Ticket(Generic[T]):
    """A job in the line, and what its order follows from. `cost`: work / share. `arrived`: virtual time. `expected`:
    the work that it will be itself, which may differ from what its user is charged for it.
    """

    item: T
    user: str
    job_class: str
    expected: float
    cost: float
    arrived: float
    number: int  # grows with every job that comes
    first: bool = False  # before all others, in the order of their numbers


@dataclass(frozen=True, slots=True)
class Place(Generic[T]):
    """Where a job stands. Both counts begin with 0; the work is what is expected of the jobs counted."""

    ticket: Ticket[T]
    before: int  # jobs in front of it
    own_before: int  # of them, those of the same user
    own_expected_before: float


class Line(Generic[T]):
    """See the module."""

    def __init__(self) -> None:
        self._first: dict[int, Ticket[T]] = {}
        self._first_order: list[int] = []
        self._classes: dict[str, _FairQueue[T]] = {name: _FairQueue() for name in CLASSES}
        self._number = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Ticket[T]]:
        """Everybody, in the order in which they would be taken."""
        yield from [self._first[number] for number in self._first_order]
        for name in CLASSES:
            yield from self._classes[name].in_order()

    def add(
        self,
        item: T,
        *,
        user: str,
        job_class: str = CLASSES[0],
        work: float = 1.0,
        share: float = 1.0,
        expected: float | None = None,
        first: bool = False,
    ) -> Ticket[T]:
        """Puts a job into the line.

        Raises KeyError for an unknown class, ValueError if work or share are not above 0.
        """
        if not (work > 0 and share > 0):
            raise ValueError(f"work and share must be above 0: {work}, {share}")
        queue = self._classes[job_class]
        self._number += 1
        cost = min(work / share, MOST_COST)
        ticket = Ticket(
            item, user, job_class, expected or work, cost, queue.now, self._number, first
        )
        self._put(ticket)
        return ticket

    def put_back(self, ticket: Ticket[T]) -> Ticket[T]:
        """Takes a job in again that was taken and could not go: it comes first, and is not charged again. The ticket is
        another one from now on.
        """
        ticket = replace(ticket, first=True)
        self._put(ticket)
        return ticket

    def take(self, may: Callable[[str], bool] = lambda _user: True) -> Ticket[T] | None:
        """The next job whose user `may` have it, which leaves the line; None if there is none. Whoever comes first has
        been let through before.
        """
        ticket = self._take_first()
        for name in CLASSES:
            ticket = ticket or self._classes[name].take(may)
        self._length -= ticket is not None
        return ticket

    def _take_first(self) -> Ticket[T] | None:
        return self._first.pop(self._first_order.pop(0)) if self._first_order else None

    def remove(self, ticket: Ticket[T]) -> bool:
        """Takes a job out of the line; False if it is not there. Its user is charged nothing for it."""
        if ticket.first:
            found = self._first.pop(ticket.number, None) is not None
            if found:
                del self._first_order[bisect_left(self._first_order, ticket.number)]
        else:
            found = self._classes[ticket.job_class].remove(ticket)
        self._length -= found
        return found

    def places(self) -> Iterator[Place[T]]:
        """Everybody's place, in order."""
        own: dict[str, tuple[int, float]] = {}
        for before, ticket in enumerate(self):
            own_before, own_expected = own.get(ticket.user, (0, 0.0))
            yield Place(ticket, before, own_before, own_expected)
            own[ticket.user] = (own_before + 1, own_expected + ticket.expected)

    def _put(self, ticket: Ticket[T]) -> None:
        if ticket.first:
            self._first[ticket.number] = ticket
            insort(self._first_order, ticket.number)
        else:
            self._classes[ticket.job_class].put(ticket)
        self._length += 1


class _FairQueue(Generic[T]):
    """The waiting jobs of one class. A user's jobs keep their order; only the first of them needs a tag, so that jobs
    which leave the line unserved move nobody else's.
    """

    def __init__(self) -> None:
        self.now = 0.0  # virtual time
        self._users: dict[str, OrderedDict[int, Ticket[T]]] = {}
        self._finish: dict[str, float] = {}  # user -> tag of the job served last + its cost
        self._heads: list[
            tuple[float, int, str]
        ] = []  # heap of (tag, number, user); stale ones are passed over

    def put(self, ticket: Ticket[T]) -> None:
        waiting = self._users.setdefault(ticket.user, OrderedDict())
        waiting[ticket.number] = ticket
        if len(waiting) == 1:
            self._push_head(ticket)

    def take(self, may: Callable[[str], bool]) -> Ticket[T] | None:
        passed: list[tuple[float, int, str]] = []
        taken = None
        while self._heads and taken is None:
            head = heapq.heappop(self._heads)
            tag, number, user = head
            if number != self._head_of(user):
                continue
            if not may(user):
                passed.append(head)
                continue
            taken = self._users[user][number]
            self.now = max(self.now, tag)
            self._finish[user] = tag + taken.cost
            self.remove(taken)
        for head in passed:
            heapq.heappush(self._heads, head)
        self._forget()
        return taken

    def remove(self, ticket: Ticket[T]) -> bool:
        waiting = self._users.get(ticket.user, OrderedDict())
        was_head = self._head_of(ticket.user) == ticket.number
        if waiting.pop(ticket.number, None) is None:
            return False
        if not waiting:
            del self._users[ticket.user]
        elif was_head:
            self._push_head(next(iter(waiting.values())))
        return True

    def in_order(self) -> Iterator[Ticket[T]]:
        heads = []
        for user, waiting in self._users.items():
            tickets = iter(list(waiting.values()))
            ticket = next(tickets)
            heads.append(
                (self._tag(ticket, self._finish.get(user, 0.0)), ticket.number, ticket, tickets)
            )
        heapq.heapify(heads)
        while heads:
            tag, _, ticket, tickets = heads[0]
            yield ticket
            if (following := next(tickets, None)) is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(
                    heads,
                    (self._tag(following, tag + ticket.cost), following.number, following, tickets),
                )

    def _head_of(self, user: str) -> int | None:
        waiting = self._users.get(user)
        return next(iter(waiting)) if waiting else None

    def _push_head(self, ticket: Ticket[T]) -> None:
        tag = self._tag(ticket, self._finish.get(ticket.user, 0.0))
        heapq.heappush(self._heads, (tag, ticket.number, ticket.user))

    @staticmethod
    def _tag(ticket: Ticket[T], finish: float) -> float:
        return max(ticket.arrived, finish)

    def _forget(self) -> None:
        """No user is further behind than a job, so those who are least so lose nothing; stale heads are of no use."""
        if len(self._finish) > 2 * FORGET_BEYOND + len(self._users):
            kept = heapq.nlargest(FORGET_BEYOND, self._finish, key=lambda user: self._finish[user])
            self._finish = {
                user: self._finish[user] for user in {*kept, *self._users} if user in self._finish
            }
        if len(self._heads) > FORGET_BEYOND + 2 * len(self._users):
            self._heads = [head for head in self._heads if head[1] == self._head_of(head[2])]
            heapq.heapify(self._heads)
