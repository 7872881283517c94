"""The queue of waiting jobs: which is next, and each one's position. Pure: no clock, no I/O.

Jobs that continue after an interruption come first. Then interactive jobs come before batch jobs,
and inside a class users are served by start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair
Queueing", SIGCOMM 1996). A job's start tag is the virtual time at which its user is entitled to it:
the start tag of that user's job before, plus that job's work / share. The smallest tag is next, and
virtual time is the tag of the job taken last. So a user who returns after a pause is next, without
being paid back for the pause, and a user who floods the queue waits behind their own jobs.

An operator may move a job to the front of its class, or to another class. Neither gives its user
more work than they are entitled to: what is served earlier is charged all the same.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from topology.class_queue import ClassQueue, Entry

T = TypeVar("T")
CLASSES = ("interactive", "batch")  # in the order in which they are served
MAX_COST = 1e12  # of one job: more would take all precision from the tags behind it


@dataclass(frozen=True, slots=True)
class Position(Generic[T]):
    """Where a job stands: the jobs before it, its own user's among them, and the work of those."""

    entry: Entry[T]
    before: int
    own_before: int
    own_expected_before: float


def _anybody(_user: str) -> bool:
    return True


class FairQueue(Generic[T]):
    """See the module."""

    def __init__(self) -> None:
        self._first: dict[int, Entry[T]] = {}
        self._first_order: list[int] = []
        self._classes: dict[str, ClassQueue[T]] = {name: ClassQueue() for name in CLASSES}
        self._number = 0
        self.length = 0  # as len() says, without a call

    def __len__(self) -> int:
        return self.length

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

    def take(self, may_go: Callable[[str], bool] = _anybody) -> Entry[T] | None:
        """Removes and returns the next job whose user `may_go`; None if there is none.

        A job that comes first goes whatever `may_go` says: it was let through before.
        """
        entry = None
        if self._first_order:
            entry = self._first.pop(self._first_order.pop(0))
        for name in CLASSES:
            if entry is None:
                entry = self._classes[name].take(may_go)
        if entry is not None:
            self.length -= 1
        return entry

    def remove(self, entry: Entry[T]) -> bool:
        """Removes a job, at no charge to its user; False if it is not in the queue."""
        if entry.first:
            removed = self._first.pop(entry.number, None) is not None
            if removed:
                del self._first_order[bisect_left(self._first_order, entry.number)]
        else:
            removed = self._classes[entry.job_class].remove(entry)
        if removed:
            self.length -= 1
        return removed

    def to_front(self, entry: Entry[T]) -> bool:
        """Puts a waiting job before all others of its class; False if it is not in the queue.

        A job that comes first anyway stays where it is.
        """
        if entry.first:
            return entry.number in self._first
        return self._classes[entry.job_class].to_front(entry)

    def change_class(self, entry: Entry[T], job_class: str) -> Entry[T] | None:
        """Moves a waiting job to another class, behind its user's jobs there, as a new entry.

        None if it is not in the queue. Raises KeyError for an unknown class.
        """
        queue = self._classes[job_class]
        if entry.first:
            if entry.number not in self._first:
                return None
            self._first[entry.number] = replace(entry, job_class=job_class)
            return self._first[entry.number]
        if not self._classes[entry.job_class].remove(entry):
            return None
        self._number += 1
        changed = replace(
            entry, job_class=job_class, arrived=queue.virtual_time, number=self._number
        )
        queue.put(changed)
        return changed

    def lengths(self) -> dict[str, int]:
        """How many jobs wait in each class; those that come first count as their class."""
        lengths = {name: len(queue) for name, queue in self._classes.items()}
        for entry in self._first.values():
            lengths[entry.job_class] += 1
        return lengths

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
        self.length += 1
