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
class Entry(Generic[T]):
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
class Position(Generic[T]):
    """Where a job stands. Both counts begin with 0; the work is what is expected of the jobs counted."""

    entry: Entry[T]
    before: int  # jobs in front of it
    own_before: int  # of them, those of the same user
    own_expected_before: float


class FairQueue(Generic[T]):
    """See the module."""

    def __init__(self) -> None:
        self._first: dict[int, Entry[T]] = {}
        self._first_order: list[int] = []
        self._classes: dict[str, _ClassQueue[T]] = {name: _ClassQueue() for name in CLASSES}
        self._number = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Entry[T]]:
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
    ) -> Entry[T]:
        """Puts a job into the line.

        Raises KeyError for an unknown class, ValueError if work or share are not above 0.
        """
        if not (work > 0 and share > 0):
            raise ValueError(f"work and share must be above 0: {work}, {share}")
        queue = self._classes[job_class]
        self._number += 1
        cost = min(work / share, MOST_COST)
        entry = Entry(item, user, job_class, expected or work, cost, queue.now, self._number, first)
        self._put(entry)
        return entry

    def put_back(self, entry: Entry[T]) -> Entry[T]:
        """Takes a job in again that was taken and could not go: it comes first, and is not charged again. The entry is
        another one from now on.
        """
        entry = replace(entry, first=True)
        self._put(entry)
        return entry

    def take(self, may: Callable[[str], bool] = lambda _user: True) -> Entry[T] | None:
        """The next job whose user `may` have it, which leaves the line; None if there is none. Whoever comes first has
        been let through before.
        """
        entry = self._take_first()
        for name in CLASSES:
            entry = entry or self._classes[name].take(may)
        self._length -= entry is not None
        return entry

    def _take_first(self) -> Entry[T] | None:
        return self._first.pop(self._first_order.pop(0)) if self._first_order else None

    def remove(self, entry: Entry[T]) -> bool:
        """Takes a job out of the line; False if it is not there. Its user is charged nothing for it."""
        if entry.first:
            found = self._first.pop(entry.number, None) is not None
            if found:
                del self._first_order[bisect_left(self._first_order, entry.number)]
        else:
            found = self._classes[entry.job_class].remove(entry)
        self._length -= found
        return found

    def positions(self) -> Iterator[Position[T]]:
        """Everybody's place, in order."""
        own: dict[str, tuple[int, float]] = {}
        for before, entry in enumerate(self):
            own_before, own_expected = own.get(entry.user, (0, 0.0))
            yield Position(entry, before, own_before, own_expected)
            own[entry.user] = (own_before + 1, own_expected + entry.expected)

    def _put(self, entry: Entry[T]) -> None:
        if entry.first:
            self._first[entry.number] = entry
            insort(self._first_order, entry.number)
        else:
            self._classes[entry.job_class].put(entry)
        self._length += 1


class _ClassQueue(Generic[T]):
    """The waiting jobs of one class. A user's jobs keep their order; only the first of them needs a tag, so that jobs
    which leave the line unserved move nobody else's.
    """

    def __init__(self) -> None:
        self.now = 0.0  # virtual time
        self._users: dict[str, OrderedDict[int, Entry[T]]] = {}
        self._finish: dict[str, float] = {}  # user -> tag of the job served last + its cost
        self._heads: list[
            tuple[float, int, str]
        ] = []  # heap of (tag, number, user); stale ones are passed over

    def put(self, entry: Entry[T]) -> None:
        waiting = self._users.setdefault(entry.user, OrderedDict())
        waiting[entry.number] = entry
        if len(waiting) == 1:
            self._push_head(entry)

    def take(self, may: Callable[[str], bool]) -> Entry[T] | None:
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

    def remove(self, entry: Entry[T]) -> bool:
        waiting = self._users.get(entry.user, OrderedDict())
        was_head = self._head_of(entry.user) == entry.number
        if waiting.pop(entry.number, None) is None:
            return False
        if not waiting:
            del self._users[entry.user]
        elif was_head:
            self._push_head(next(iter(waiting.values())))
        return True

    def in_order(self) -> Iterator[Entry[T]]:
        heads = []
        for user, waiting in self._users.items():
            entries = iter(list(waiting.values()))
            entry = next(entries)
            heads.append(
                (self._tag(entry, self._finish.get(user, 0.0)), entry.number, entry, entries)
            )
        heapq.heapify(heads)
        while heads:
            tag, _, entry, entries = heads[0]
            yield entry
            if (following := next(entries, None)) is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(
                    heads,
                    (self._tag(following, tag + entry.cost), following.number, following, entries),
                )

    def _head_of(self, user: str) -> int | None:
        waiting = self._users.get(user)
        return next(iter(waiting)) if waiting else None

    def _push_head(self, entry: Entry[T]) -> None:
        tag = self._tag(entry, self._finish.get(entry.user, 0.0))
        heapq.heappush(self._heads, (tag, entry.number, entry.user))

    @staticmethod
    def _tag(entry: Entry[T], finish: float) -> float:
        return max(entry.arrived, finish)

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
