"""Which sequence has which slot, and prompts whose beginning a slot still holds.

Pure bookkeeping. A slot keeps its keys and values when its sequence has finished, until another
sequence needs the slot.
"""

from collections.abc import Collection
from collections.abc import Sequence as Many
from typing import NamedTuple

_FIRST_LOOK = 32  # tokens compared first
_WORTH_A_COPY = 32  # tokens; computing fewer again costs no more than another step's share


class SlotAllocation(NamedTuple):
    """Where a sequence is computed, and how much of its prompt is cached."""

    slot: int
    cached: int  # tokens at the prompt's beginning whose keys and values exist
    source: int | None = None  # the slot to copy them from; None: `slot` has them already


class PrefixCache:
    """A fixed number of slots, and the tokens whose keys and values each holds."""

    def __init__(self, slots: int) -> None:
        self._tokens: list[list[int]] = [[] for _ in range(slots)]
        self._groups: list[int] = [0] * slots  # see `allocate`
        self._free: list[int] = list(range(slots))  # least recently used first
        self.prompt_tokens = 0  # of all allocations
        self.cached_tokens = 0  # of them, not computed again

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def allocate(self, prompt: list[int], *, reuse: bool = True, group: int = 0) -> SlotAllocation:
        """The best free slot for `prompt`, of which at least the last token is always computed.

        That is the slot that has most of it, or the least recently used one with a copy from a busy
        slot that has more. Without `reuse` nothing counts as cached: it may have been rounded
        differently. Keys may depend on the length, so only a prompt of the same `group` shares
        them; a negative group shares nothing.
        """
        limit = len(prompt) - 1 if reuse and group >= 0 else 0
        cached = self._cached_in_slots(prompt, group, limit)
        allocation = self._best_allocation(cached)
        self._free.remove(allocation.slot)
        self._tokens[allocation.slot] = prompt[: allocation.cached]
        self._groups[allocation.slot] = group
        self.prompt_tokens += len(prompt)
        self.cached_tokens += allocation.cached
        return allocation

    def _cached_in_slots(self, prompt: list[int], group: int, limit: int) -> list[int]:
        """How many tokens of `prompt` each slot has, up to `limit`."""
        cached: list[int] = []
        for tokens, slot_group in zip(self._tokens, self._groups, strict=True):
            matches = slot_group == group
            cached.append(min(limit, common_prefix(tokens, prompt)) if matches else 0)
        return cached

    def _best_allocation(self, cached: list[int]) -> SlotAllocation:
        oldest = self._free[0]
        best = cached.index(max(cached))
        best_free = oldest
        for slot in self._free:
            if cached[slot] >= cached[best_free]:  # of equals the most recently used
                best_free = slot
        if cached[best] >= cached[best_free] + _WORTH_A_COPY:
            target = oldest if cached[oldest] < cached[best] else best_free
            return SlotAllocation(target, cached[best], source=best)
        if not cached[best_free]:
            return SlotAllocation(oldest, 0)
        return SlotAllocation(best_free, cached[best_free])

    def restart(self, slot: int, group: int) -> None:
        """The slot's sequence is computed again from its first token, in another group."""
        self._tokens[slot] = []
        self._groups[slot] = group

    def extend(self, slot: int, tokens: Many[int]) -> None:
        """The slot has the keys and values of `tokens`, too."""
        self._tokens[slot].extend(tokens)

    def release(self, slot: int) -> None:
        """The slot's sequence has finished; its tokens stay cached. May be called again."""
        if slot not in self._free:
            self._free.append(slot)

    def invalidate(self, slot: int) -> None:
        """What the slot has may be wrong, so no other prompt uses it."""
        self._tokens[slot].clear()

    def release_all_but(self, taken: Collection[int]) -> None:
        """Frees slots that an allocation broken off by an error has left without a sequence."""
        for slot in range(len(self._tokens)):
            if slot not in taken and slot not in self._free:
                self.invalidate(slot)
                self.release(slot)

    def clear(self) -> None:
        """Nothing is cached any more; allocations stay. For memory in an unknown state."""
        for tokens in self._tokens:
            tokens.clear()

    def longest_match(self, prompt: list[int]) -> int:
        """The most tokens of `prompt` that any slot has."""
        return max(common_prefix(tokens, prompt) for tokens in self._tokens)


def common_prefix(first: list[int], second: list[int]) -> int:
    """Length of the common prefix.

    Most prompts differ early, and each is compared with every slot's tokens, by slices in C.
    """
    length = min(len(first), len(second))
    low, high = 0, min(length, _FIRST_LOOK)
    while first[low:high] == second[low:high]:
        if high == length:
            return length
        low, high = high, min(length, 2 * high)
    while high - low > 1:  # they differ between the two
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
