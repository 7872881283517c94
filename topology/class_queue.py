"""The waiting jobs of one class: users in turn by tags, and jobs that an operator moved up.

Pure. `fair_queue.py` explains the tags and has the classes.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
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


class ClassQueue(Generic[T]):
    """See the module.

    A user's jobs keep their order and only the first of them (the head) needs a tag, so removing a
    job moves nobody else's. A job at the front has no tag, but its user is charged for it when it
    is taken, as if it had come in its turn: the user's other jobs come that much later.
    """

    def __init__(self) -> None:
        self.virtual_time = 0.0
        self._front: OrderedDict[int, Entry[T]] = OrderedDict()
        self._users: dict[str, OrderedDict[int, Entry[T]]] = {}
        self._finish: dict[str, float] = {}  # tag at which the user's next job may start
        # heap of (tag, entry number, user); one that is not its user's head any more is skipped
        self._heads: list[tuple[float, int, str]] = []

    def __len__(self) -> int:
        return len(self._front) + sum(len(waiting) for waiting in self._users.values())

    def put(self, entry: Entry[T]) -> None:
        waiting = self._users.get(entry.user)
        if waiting is None:
            waiting = self._users[entry.user] = OrderedDict()
        waiting[entry.number] = entry
        if len(waiting) == 1:
            self._push_head(entry)

    def take(self, may_go: Callable[[str], bool]) -> Entry[T] | None:
        taken = None
        if self._front:
            taken = self._take_front(may_go)
        if taken is None:
            taken = self._take_in_turn(may_go)
        self._forget_idle_users()
        self._drop_stale_heads()
        return taken

    def remove(self, entry: Entry[T]) -> bool:
        if entry.number in self._front:
            del self._front[entry.number]
            return True
        waiting = self._users.get(entry.user)
        if waiting is None or entry.number not in waiting:
            return False
        was_head = next(iter(waiting)) == entry.number
        del waiting[entry.number]
        if not waiting:
            del self._users[entry.user]
        elif was_head:
            self._push_head(next(iter(waiting.values())))
        return True

    def to_front(self, entry: Entry[T]) -> bool:
        """Puts a waiting job before all others of the class; False if it is not here."""
        if not self.remove(entry):
            return False
        self._front[entry.number] = entry
        self._front.move_to_end(entry.number, last=False)
        return True

    def in_order(self) -> Iterator[Entry[T]]:
        """The front, then the users' jobs merged by their tags, as repeated `take` would."""
        finish: dict[str, float] = {}
        for entry in list(self._front.values()):
            yield entry
            finish[entry.user] = self._finish_after(entry, finish.get(entry.user))
        heads = []
        for user, waiting in self._users.items():
            entries = iter(list(waiting.values()))
            entry = next(entries)
            tag = _start_tag(entry, finish.get(user, self._finish.get(user, 0.0)))
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

    def _take_front(self, may_go: Callable[[str], bool]) -> Entry[T] | None:
        for entry in self._front.values():
            if may_go(entry.user):
                del self._front[entry.number]
                self._finish[entry.user] = self._finish_after(entry)
                head = self._head(entry.user)
                if head is not None:
                    self._push_head(head)  # its former tag is too early now
                return entry
        return None

    def _take_in_turn(self, may_go: Callable[[str], bool]) -> Entry[T] | None:
        skipped: list[tuple[float, int, str]] = []
        taken = None
        while self._heads and taken is None:
            queued = heapq.heappop(self._heads)
            tag, number, user = queued
            head = self._valid_head(tag, number, user)
            if head is None:
                continue
            if not may_go(user):
                skipped.append(queued)
                continue
            taken = head
            self.virtual_time = max(self.virtual_time, tag)
            self._finish[user] = tag + taken.cost
            self.remove(taken)
        for queued in skipped:
            heapq.heappush(self._heads, queued)
        return taken

    def _finish_after(self, entry: Entry[T], finish: float | None = None) -> float:
        """The tag of the user's next job once this one is taken."""
        if finish is None:
            finish = self._finish.get(entry.user, 0.0)
        return _start_tag(entry, finish) + entry.cost

    def _head(self, user: str) -> Entry[T] | None:
        waiting = self._users.get(user)
        if not waiting:
            return None
        return next(iter(waiting.values()))

    def _valid_head(self, tag: float, number: int, user: str) -> Entry[T] | None:
        """The user's head if the heap's item is still about it."""
        head = self._head(user)
        if head is None or head.number != number:
            return None
        if tag != _start_tag(head, self._finish.get(user, 0.0)):
            return None
        return head

    def _push_head(self, entry: Entry[T]) -> None:
        tag = _start_tag(entry, self._finish.get(entry.user, 0.0))
        heapq.heappush(self._heads, (tag, entry.number, entry.user))

    def _forget_idle_users(self) -> None:
        """Forgets the users with the smallest tags, most of which virtual time has passed."""
        if len(self._finish) <= 2 * REMEMBERED_USERS + len(self._users):
            return
        furthest = heapq.nlargest(REMEMBERED_USERS, self._finish, key=self._finish.__getitem__)
        remembered: dict[str, float] = {}
        for user in self._users.keys() | furthest:
            if user in self._finish:
                remembered[user] = self._finish[user]
        self._finish = remembered

    def _drop_stale_heads(self) -> None:
        if len(self._heads) <= REMEMBERED_USERS + 2 * len(self._users):
            return
        heads: list[tuple[float, int, str]] = []
        for tag, number, user in self._heads:
            if self._valid_head(tag, number, user) is not None:
                heads.append((tag, number, user))
        heapq.heapify(heads)
        self._heads = heads


def _start_tag(entry: Entry[T], finish: float) -> float:
    return max(entry.arrived, finish)
