"""The queue of waiting jobs: which is next, and each one's position. Pure: no clock, no I/O.

Jobs that continue after an interruption come first. Then interactive jobs come before batch jobs,
and inside a class users are served by start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair
Queueing", SIGCOMM 1996). A job's start tag is the virtual time at which its user is entitled to it:
the start tag of that user's job before, plus that job's work / share. The smallest tag is next, and
virtual time is the tag of the job taken last. So a user who returns after a pause is next, without
being paid back for the pause, and a user who floods the queue waits behind their own jobs.
"""

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

T = TypeVar("T")
CLASSES = ("interactive", "batch")  # in the order in which they are served
MAX_COST = 1e12  # of one job: more would take all precision from the tags behind it
REMEMBERED_USERS = 1000  # without waiting jobs


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A job in the queue, with what decides its order.

    `cost`: what its user is charged, work / share. `arrived`: virtual time. `expected`: the work of
    this very job, which may differ from what its user is charged for it.
    """

    item: T
    user: str
    job_class: str
    expected: float
    cost: float
    arrived: float
    number: int  # grows with every job that is added
    first: bool = False  # before all others, in the order of their numbers


@dataclass(frozen=True, slots=True)
class Position(Generic[T]):
    """Where a job stands: the jobs before it, its own user's among them, and the work of those."""

    entry: Entry[T]
    before: int
    own_before: int
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
        """All entries, in the order in which they would be taken."""
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
        """Adds a job. `work`: what its user is charged, in proportion to 1 / `share`.

        Raises KeyError for an unknown class, ValueError if work or share are not above 0.
        """
        if not (work > 0 and share > 0):
            raise ValueError(f"work and share must be above 0: {work}, {share}")
        queue = self._classes[job_class]
        self._number += 1
        cost = min(work / share, MAX_COST)
        entry = Entry(
            item, user, job_class, expected or work, cost, queue.virtual_time, self._number, first
        )
        self._put(entry)
        return entry

    def put_back(self, entry: Entry[T]) -> Entry[T]:
        """Returns a job that was taken but could not go, as a new entry.

        It comes first and is not charged again.
        """
        entry = replace(entry, first=True)
        self._put(entry)
        return entry

    def take(self, may_go: Callable[[str], bool] = lambda _user: True) -> Entry[T] | None:
        """Removes and returns the next job whose user `may_go`; None if there is none.

        A job that comes first goes whatever `may_go` says: it was let through before.
        """
        entry = self._take_first()
        for name in CLASSES:
            if entry is None:
                entry = self._classes[name].take(may_go)
        if entry is not None:
            self._length -= 1
        return entry

    def _take_first(self) -> Entry[T] | None:
        if not self._first_order:
            return None
        return self._first.pop(self._first_order.pop(0))

    def remove(self, entry: Entry[T]) -> bool:
        """Removes a job, at no charge to its user; False if it is not in the queue."""
        if entry.first:
            removed = self._first.pop(entry.number, None) is not None
            if removed:
                del self._first_order[bisect_left(self._first_order, entry.number)]
        else:
            removed = self._classes[entry.job_class].remove(entry)
        if removed:
            self._length -= 1
        return removed

    def positions(self) -> Iterator[Position[T]]:
        """The position of every job, in order."""
        own_jobs: dict[str, int] = {}
        own_expected: dict[str, float] = {}
        for before, entry in enumerate(self):
            jobs = own_jobs.get(entry.user, 0)
            expected = own_expected.get(entry.user, 0.0)
            yield Position(entry, before, jobs, expected)
            own_jobs[entry.user] = jobs + 1
            own_expected[entry.user] = expected + entry.expected

    def _put(self, entry: Entry[T]) -> None:
        if entry.first:
            self._first[entry.number] = entry
            insort(self._first_order, entry.number)
        else:
            self._classes[entry.job_class].put(entry)
        self._length += 1


class _ClassQueue(Generic[T]):
    """The waiting jobs of one class.

    A user's jobs keep their order and only the first of them (the head) needs a tag, so removing a
    job moves nobody else's.
    """

    def __init__(self) -> None:
        self.virtual_time = 0.0
        self._users: dict[str, OrderedDict[int, Entry[T]]] = {}
        self._finish: dict[str, float] = {}  # tag at which the user's next job may start
        # heap of (tag, entry number, user); a head that is no longer its user's first is skipped
        self._heads: list[tuple[float, int, str]] = []

    def put(self, entry: Entry[T]) -> None:
        waiting = self._users.setdefault(entry.user, OrderedDict())
        waiting[entry.number] = entry
        if len(waiting) == 1:
            self._push_head(entry)

    def take(self, may_go: Callable[[str], bool]) -> Entry[T] | None:
        skipped: list[tuple[float, int, str]] = []
        taken = None
        while self._heads and taken is None:
            head = heapq.heappop(self._heads)
            tag, number, user = head
            if number != self._head_number(user):
                continue
            if not may_go(user):
                skipped.append(head)
                continue
            taken = self._users[user][number]
            self.virtual_time = max(self.virtual_time, tag)
            self._finish[user] = tag + taken.cost
            self.remove(taken)
        for head in skipped:
            heapq.heappush(self._heads, head)
        self._forget_idle_users()
        self._drop_stale_heads()
        return taken

    def remove(self, entry: Entry[T]) -> bool:
        waiting = self._users.get(entry.user, OrderedDict())
        was_head = self._head_number(entry.user) == entry.number
        if waiting.pop(entry.number, None) is None:
            return False
        if not waiting:
            del self._users[entry.user]
        elif was_head:
            self._push_head(next(iter(waiting.values())))
        return True

    def in_order(self) -> Iterator[Entry[T]]:
        """Merges the users' jobs by their tags, as repeated `take` would."""
        heads = []
        for user, waiting in self._users.items():
            entries = iter(list(waiting.values()))
            entry = next(entries)
            tag = _start_tag(entry, self._finish.get(user, 0.0))
            heads.append((tag, entry.number, entry, entries))
        heapq.heapify(heads)
        while heads:
            tag, _, entry, entries = heads[0]
            yield entry
            following = next(entries, None)
            if following is None:
                heapq.heappop(heads)
            else:
                tag = _start_tag(following, tag + entry.cost)
                heapq.heapreplace(heads, (tag, following.number, following, entries))

    def _head_number(self, user: str) -> int | None:
        waiting = self._users.get(user)
        if not waiting:
            return None
        return next(iter(waiting))

    def _push_head(self, entry: Entry[T]) -> None:
        tag = _start_tag(entry, self._finish.get(entry.user, 0.0))
        heapq.heappush(self._heads, (tag, entry.number, entry.user))

    def _forget_idle_users(self) -> None:
        """Forgets the users with the smallest tags, most of which virtual time has passed."""
        if len(self._finish) <= 2 * REMEMBERED_USERS + len(self._users):
            return
        furthest = heapq.nlargest(REMEMBERED_USERS, self._finish, key=self._finish.__getitem__)
        self._finish = {
            user: self._finish[user] for user in {*furthest, *self._users} if user in self._finish
        }

    def _drop_stale_heads(self) -> None:
        if len(self._heads) > REMEMBERED_USERS + 2 * len(self._users):
            self._heads = [head for head in self._heads if head[1] == self._head_number(head[2])]
            heapq.heapify(self._heads)


def _start_tag(entry: Entry[T], finish: float) -> float:
    return max(entry.arrived, finish)
