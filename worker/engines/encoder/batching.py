"""Which inputs are computed together: pure.

A batch is padded to its longest input, so inputs of about the same length share one, whichever
requests they belong to. Requests take turns in choosing the longest input of a batch: one with a
single input waits for one batch of each other request at most, not for their ends.
"""

from bisect import bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import count

from broker.wire import JobClass
from worker.engines.encoder.request import Item, Request

_CLASSES: tuple[JobClass, ...] = ("interactive", "batch")  # in the order of their turns
_Entry = tuple[int, int, Item]  # length, number, item: numbers are unique, so items never compare


class WaitingItems:
    """The inputs that wait. `tokens`: of a batch with its padding, unless one input has more;
    `rows`: inputs of a batch.
    """

    def __init__(self, tokens: int, rows: int) -> None:
        self.tokens = tokens
        self._rows = rows
        self._numbers = count()
        self._sorted: list[_Entry] = []  # by length
        # each request's inputs, longest first; those that were taken are skipped
        self._turns: dict[JobClass, OrderedDict[Request, deque[_Entry]]] = {
            job_class: OrderedDict() for job_class in _CLASSES
        }
        self._waiting: set[int] = set()  # numbers

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, items: Iterable[Item]) -> None:
        """Takes inputs of one request, perhaps not for the first time."""
        for item in sorted(items, key=lambda item: item.length, reverse=True):
            entry = (item.length, next(self._numbers), item)
            self._waiting.add(entry[1])
            insort(self._sorted, entry, key=_order)
            turns = self._turns[item.request.job_class]
            turns.setdefault(item.request, deque()).append(entry)

    def remove(self, request: Request) -> None:
        """Drops what waits of that request."""
        self._turns[request.job_class].pop(request, None)
        self._sorted = [entry for entry in self._sorted if entry[2].request is not request]
        self._waiting = {number for _, number, _ in self._sorted}

    def take(self) -> list[Item]:
        """The next batch, its longest input first; empty if nothing waits."""
        longest = self._next_longest()
        if longest is None:
            return []
        rows = min(self._rows, max(1, self.tokens // max(1, longest[0])))
        end = bisect_right(self._sorted, _order(longest), key=_order)
        start = max(0, end - rows)
        batch = self._sorted[start:end]
        del self._sorted[start:end]
        self._waiting.difference_update(number for _, number, _ in batch)
        return [item for _, _, item in reversed(batch)]

    def _next_longest(self) -> _Entry | None:
        """Of the request whose turn it is."""
        for job_class in _CLASSES:
            turns = self._turns[job_class]
            while turns:
                request, entries = turns.popitem(last=False)
                while entries and entries[0][1] not in self._waiting:
                    entries.popleft()
                if entries:
                    turns[request] = entries  # at the end: the others are next
                    return entries[0]
        return None


def _order(entry: _Entry) -> tuple[int, int]:
    """By length; of equally long ones the oldest is last, so that it takes younger ones along."""
    length, number, _ = entry
    return length, -number
