"""Which sequence has which slot, and what the slots still hold: a prompt that begins alike is not read again.

Pure bookkeeping. A slot keeps its tokens when its sequence has ended, until another one needs the place.
"""

from collections.abc import Collection
from collections.abc import Sequence as Many
from typing import NamedTuple

_LOOK = 32  # tokens compared first
_WORTH_A_COPY = 32  # tokens: below that, reading them again costs no more than another step's share


class Seat(NamedTuple):
    """Where a sequence is computed, and how much of its prompt it need not read."""

    slot: int
    held: int  # tokens at the prompt's beginning whose keys and values are there
    source: int | None = None  # the slot to copy them from first; None: they are in `slot` already


class Slots:
    """A fixed number of places. `tokens` of a slot are those whose keys and values it holds."""

    def __init__(self, count: int) -> None:
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._groups: list[int] = [0] * count  # of each slot: see `take`
        self._free: list[int] = list(range(count))  # longest unused first
        self.asked = 0  # prompt tokens of all sequences seated
        self.reused = 0  # of them, not read again

    @property
    def free(self) -> int:
        """How many sequences may still come."""
        return len(self._free)

    def take(self, prompt: list[int], *, reuse: bool = True, group: int = 0) -> Seat:
        """The best place for `prompt`; at least its last token is to be read, for somebody has to say what comes next.

        A free slot that holds the most of it, or the one unused for longest with a copy from a busy slot that holds
        more. Without `reuse` all of it is to be read: what is held may have been rounded otherwise. Only what is held
        for a prompt of the same `group` is of use, and of none for a negative one: keys may differ with the length.
        """
        most = len(prompt) - 1 if reuse and group >= 0 else 0
        held = []
        for tokens, theirs in zip(self._tokens, self._groups, strict=True):
            held.append(min(most, common(tokens, prompt)) if theirs == group else 0)
        best = max(range(len(held)), key=held.__getitem__)
        slot = max(
            reversed(self._free), key=held.__getitem__
        )  # `reversed`: of equals the one unused for longest
        if held[best] >= held[slot] + _WORTH_A_COPY:
            slot = self._free[0] if held[self._free[0]] < held[best] else slot
            seat = Seat(slot, held[best], source=best)
        else:
            slot = slot if held[slot] else self._free[0]
            seat = Seat(slot, held[slot])
        self._free.remove(seat.slot)
        self._tokens[seat.slot] = prompt[: seat.held]
        self._groups[seat.slot] = group
        self.asked += len(prompt)
        self.reused += seat.held
        return seat

    def restart(self, slot: int, group: int) -> None:
        """Its sequence is read anew, as one of another group."""
        self._tokens[slot] = []
        self._groups[slot] = group

    def read(self, slot: int, tokens: Many[int]) -> None:
        """The slot holds these, too."""
        self._tokens[slot].extend(tokens)

    def leave(self, slot: int) -> None:
        """Its sequence has ended; what was read stays of use. May be called again."""
        if slot not in self._free:
            self._free.append(slot)

    def void(self, slot: int) -> None:
        """What the slot holds may be wrong, so nobody else begins with it."""
        self._tokens[slot].clear()

    def keep(self, taken: Collection[int]) -> None:
        """No other slots than these are taken: seating a sequence was broken off somewhere."""
        for slot in range(len(self._tokens)):
            if slot not in taken and slot not in self._free:
                self.void(slot)
                self.leave(slot)

    def forget(self) -> None:
        """Nothing is held any more: the memory may be in any state. Who sits where does not change."""
        for tokens in self._tokens:
            tokens.clear()

    def shared(self, prompt: list[int]) -> int:
        """How much of `prompt` is held somewhere."""
        return max(common(tokens, prompt) for tokens in self._tokens)


def common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning. Most prompts differ early, and each is compared with what all slots hold."""
    length = min(len(first), len(second))
    low, high = 0, min(length, _LOOK)
    while first[low:high] == second[low:high]:
        if high == length:
            return length
        low, high = high, min(length, 2 * high)
    while high - low > 1:  # they differ between the two; comparing slices is done in C
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
