"""A contiguous row of the KV cache for each sequence, and prompts whose beginning a row has.

A row keeps its keys and values when its sequence has finished, until another sequence needs it.
"""

from collections.abc import Collection

from worker.engines.transformers.cache.manager import Allocation, CacheRequest, Refusal
from worker.engines.transformers.model.step import SharedPrefix

_NO_PREFIXES: list[SharedPrefix] = []  # each slot's memory is its own
_FIRST_LOOK = 32  # tokens compared first
_WORTH_A_COPY = 32  # tokens; computing fewer again costs no more than another step's share
_UNSHARED = -2  # no request's group
_WORTH_WAITING = 64  # tokens that a prompt must gain by waiting for another one


class SlotCache:
    """Keeps the KVCacheManager protocol: a fixed number of slots, and the tokens whose keys and
    values each holds.
    """

    def __init__(self, slots: int) -> None:
        self._tokens: list[list[int]] = [[] for _ in range(slots)]
        self._groups: list[int] = [0] * slots  # see CacheRequest
        self._free: list[int] = list(range(slots))  # least recently used first
        self._prompts: dict[int, list[int]] = {}  # that are being computed, by slot
        self.prompt_tokens = 0
        self.cached_tokens = 0

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def allocate(self, request: CacheRequest) -> Allocation | Refusal:
        """See the protocol.

        The slot that has most of the prompt, or the least recently used one with a copy from a busy
        slot that has more.
        """
        if not self._free:
            return Refusal.NO_ROOM
        limit = 0
        if request.reuse and request.group >= 0:
            limit = len(request.ids) - 1
        cached = self._cached_in_slots(request.ids, request.group, limit)
        if request.reuse and self._worth_waiting(request, max(cached)):
            return Refusal.WORTH_WAITING
        allocation = self._best_allocation(cached)
        self._free.remove(allocation.slot)
        self._tokens[allocation.slot] = request.ids[: allocation.cached]
        self._groups[allocation.slot] = request.group
        self._prompts[allocation.slot] = request.ids
        self.prompt_tokens += len(request.ids)
        self.cached_tokens += allocation.cached
        return allocation

    def _worth_waiting(self, request: CacheRequest, cached: int) -> bool:
        """Whether a prompt that is being computed begins like this one: soon it can be copied."""
        soon = 0
        for slot, prompt in self._prompts.items():
            if self._groups[slot] == request.group >= 0:
                soon = max(soon, common_prefix(prompt, request.ids))
        return soon >= cached + _WORTH_WAITING

    def _cached_in_slots(self, prompt: list[int], group: int, limit: int) -> list[int]:
        """How many tokens of `prompt` each slot has, up to `limit`."""
        cached: list[int] = []
        for tokens, slot_group in zip(self._tokens, self._groups, strict=True):
            if slot_group == group:
                cached.append(min(limit, common_prefix(tokens, prompt)))
            else:
                cached.append(0)
        return cached

    def _best_allocation(self, cached: list[int]) -> Allocation:
        oldest = self._free[0]
        best = cached.index(max(cached))
        best_free = oldest
        for slot in self._free:
            if cached[slot] >= cached[best_free]:  # of equals the most recently used
                best_free = slot
        if cached[best] >= cached[best_free] + _WORTH_A_COPY:
            target = best_free
            if cached[oldest] < cached[best]:
                target = oldest
            return Allocation(target, cached[best], source=best)
        if not cached[best_free]:
            return Allocation(oldest, 0)
        return Allocation(best_free, cached[best_free])

    def grow(self, slot: int, length: int) -> tuple[int, ...] | None:
        """See the protocol. A slot has room for the whole context."""
        return ()

    def extend(self, slot: int, tokens: list[int]) -> None:
        """See the protocol."""
        self._tokens[slot].extend(tokens)
        prompt = self._prompts.get(slot)
        if prompt is not None and len(self._tokens[slot]) >= len(prompt):
            del self._prompts[slot]

    def release(self, slot: int) -> None:
        """See the protocol."""
        self._prompts.pop(slot, None)
        if slot not in self._free:
            self._free.append(slot)

    def invalidate(self, slot: int) -> None:
        """See the protocol."""
        self._prompts.pop(slot, None)
        self._tokens[slot].clear()

    def clear(self) -> None:
        """See the protocol."""
        for tokens in self._tokens:
            tokens.clear()
        self._prompts.clear()
        for slot in range(len(self._groups)):
            if slot not in self._free:  # what it computes next has no beginning here
                self._groups[slot] = _UNSHARED

    @property
    def shared_prefixes(self) -> list[SharedPrefix]:
        """See the protocol."""
        return _NO_PREFIXES

    def release_all_but(self, taken: Collection[int]) -> None:
        """See the protocol."""
        for slot in range(len(self._tokens)):
            if slot not in taken and slot not in self._free:
                self.invalidate(slot)
                self.release(slot)


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
