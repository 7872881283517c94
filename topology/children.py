"""What a node knows about its children, with running totals: no decision looks at all of them."""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from topology.natural import NaturalKey, natural_key

_Place = tuple[NaturalKey, str]  # of a child in the round


@dataclass(slots=True)
class Child:
    """What a node knows about one child: the child's absolute counters, and what was sent to it.

    `slots`, `free`, `finished` and `users` (jobs by user) count the child's whole subtree.
    `received` counts the jobs that arrived at the child, `sent` those forwarded to it, on the same
    scale: the difference is in transit. `number` grows within one `incarnation` of the child.
    """

    name: str
    slots: int = 0
    free: int = 0
    received: int = 0
    finished: int = 0
    accepting: bool = True
    incarnation: str = ""
    number: int = 0
    users: Mapping[str, int] = field(default_factory=dict)
    sent: int = 0

    @property
    def in_transit(self) -> int:
        """Jobs forwarded to the child that it has not reported as received."""
        return max(0, self.sent - self.received)

    @property
    def room(self) -> int:
        """Free slots in the subtree that no job in transit will take."""
        if not self.accepting:
            return 0
        sent, received = self.sent, self.received  # as `in_transit`, without a call for each job
        free = self.free - sent + received if sent > received else self.free
        return free if free > 0 else 0


class Children:
    """The children by name, and sums over them. `has_room`: a job may be forwarded to the child.

    A child changes by these methods alone, so that the sums hold.
    """

    def __init__(self, has_room: Callable[[Child], bool]) -> None:
        self.slots = 0
        self.open_slots = 0  # of children that accept jobs
        self.room = 0
        self.accepting = 0  # children
        self.users: Counter[str] = Counter()  # jobs at the children, or in transit to them
        self._has_room = has_room
        self._by_name: dict[str, Child] = {}
        self._in_transit: dict[str, deque[str]] = {}  # users of the jobs, oldest first
        self._order: list[_Place] = []
        self._with_room: list[_Place] = []

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Child]:
        """In round-robin order."""
        return (self._by_name[name] for _, name in self._order)

    def get(self, name: str) -> Child | None:
        """The child of that name."""
        return self._by_name.get(name)

    def next_with_room(self, last_served: str) -> Child | None:
        """The next one in turn, after the one served last, to which a job may be forwarded."""
        if not self._with_room:
            return None
        at = 0
        if last_served:
            at = bisect_right(self._with_room, natural_key(last_served), key=_key_of)
        _, name = self._with_room[at % len(self._with_room)]
        return self._by_name[name]

    def put(self, child: Child) -> None:
        """Adds or replaces the child; jobs that have arrived are not in transit any more."""
        known = self._by_name.get(child.name)
        had_room = False
        if known is None:
            insort(self._order, _place(child.name))
        else:
            had_room = self._has_room(known)
            self._count(known, -1)
            self._count_users(known, -1)
        self._by_name[child.name] = child
        in_transit = self._in_transit.setdefault(child.name, deque())
        while len(in_transit) > child.in_transit:
            self._add_user(in_transit.popleft(), -1)
        self._count(child, 1)
        self._count_users(child, 1)
        self._room_changed(child, had_room)

    def remove(self, name: str) -> None:
        """Forgets the child; unknown names are ignored."""
        child = self._by_name.get(name)
        if child is None:
            return
        self._clear_transit(name)
        self._count(child, -1)
        self._count_users(child, -1)
        _take_out(self._order, _place(name))
        if self._has_room(child):
            _take_out(self._with_room, _place(name))
        del self._by_name[name], self._in_transit[name]

    def sent_to(self, name: str, user: str) -> None:
        """A job of that user was forwarded to the child, if it is one."""
        child = self._by_name.get(name)
        if child is None:
            return
        self._change_sent(child, child.sent + 1)
        self._in_transit[name].append(user)
        self._add_user(user, 1)

    def lost_in_transit(self, name: str) -> None:
        """What was forwarded to the child and did not arrive is lost."""
        child = self._by_name.get(name)
        if child is not None:
            self._change_sent(child, child.received)
            self._clear_transit(name)

    def _change_sent(self, child: Child, sent: int) -> None:
        had_room, before = self._has_room(child), child.room
        child.sent = sent
        self.room += child.room - before
        self._room_changed(child, had_room)

    def _room_changed(self, child: Child, had_room: bool) -> None:
        has_room = self._has_room(child)
        if has_room and not had_room:
            insort(self._with_room, _place(child.name))
        elif had_room and not has_room:
            _take_out(self._with_room, _place(child.name))

    def _count(self, child: Child, sign: int) -> None:
        """Adds the child's slots to the sums, or takes them out."""
        self.slots += sign * child.slots
        self.room += sign * child.room
        if child.accepting:
            self.open_slots += sign * child.slots
            self.accepting += sign

    def _count_users(self, child: Child, sign: int) -> None:
        for user, jobs in child.users.items():
            self._add_user(user, sign * jobs)

    def _clear_transit(self, name: str) -> None:
        for user in self._in_transit[name]:
            self._add_user(user, -1)
        self._in_transit[name].clear()

    def _add_user(self, user: str, jobs: int) -> None:
        self.users[user] += jobs
        if not self.users[user]:
            del self.users[user]


def _place(name: str) -> _Place:
    return natural_key(name), name


def _key_of(place: _Place) -> NaturalKey:
    return place[0]


def _take_out(places: list[_Place], place: _Place) -> None:
    del places[bisect_left(places, place)]
