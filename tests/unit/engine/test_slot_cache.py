"""Who gets which slot, against a plain model of what each slot contents."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from worker.engines.transformers.cache.manager import Allocation, CacheRequest, Refusal
from worker.engines.transformers.cache.slot_cache import SlotCache, common_prefix


def allocated(cache: SlotCache, prompt: list[int], *, reuse: bool = True) -> Allocation:
    allocation = cache.allocate(CacheRequest(prompt, [], reuse=reuse))
    assert isinstance(allocation, Allocation)
    return allocation


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=80) | st.builds(
    lambda length, rest: [7] * length + rest,
    st.integers(0, 200),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
)


@given(tokens, tokens)
def test_common_is_the_longest_common_beginning(first: list[int], second: list[int]) -> None:
    length = common_prefix(first, second)
    assert first[:length] == second[:length]
    assert length in (len(first), len(second)) or first[length] != second[length]


class CachedPrefixes(RuleBasedStateMachine):
    """SlotCache are taken, read into and left in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = SlotCache(3)
        self.contents: dict[int, list[int]] = {0: [], 1: [], 2: []}
        self.taken: dict[int, list[int]] = {}
        self.unshared: set[int] = set()  # slots whose beginning was forgotten while they were busy

    running: Bundle[int] = Bundle("running")

    @rule(target=running, prompt=tokens)
    def allocate(self, prompt: list[int]) -> object:
        if not self.cache.free:
            return multiple()
        allocation = allocated(self.cache, prompt)
        assert allocation.slot not in self.taken
        where = allocation.slot if allocation.source is None else allocation.source
        assert 0 <= allocation.cached < len(prompt)
        assert self.contents[where][: allocation.cached] == prompt[: allocation.cached]
        shared = [cached for slot, cached in self.contents.items() if slot not in self.unshared]
        best = max((common_prefix(cached, prompt[:-1]) for cached in shared), default=0)
        self.unshared.discard(allocation.slot)
        assert allocation.cached > best - 32  # what is not reused is not worth a copy
        self.contents[allocation.slot] = prompt[: allocation.cached]
        self.taken[allocation.slot] = prompt
        self.cache.extend(allocation.slot, prompt[allocation.cached :])
        self.contents[allocation.slot] = list(prompt)
        return allocation.slot

    @rule(slot=running, more=tokens)
    def answer(self, slot: int, more: list[int]) -> None:
        self.cache.extend(slot, more)
        self.contents[slot] += more

    @rule(slot=consumes(running))
    def release(self, slot: int) -> None:
        del self.taken[slot]
        self.cache.release(slot)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.contents = {slot: [] for slot in self.contents}
        self.unshared |= set(self.taken)

    @invariant()
    def counted(self) -> None:
        assert self.cache.free == 3 - len(self.taken)
        assert self.cache.cached_tokens <= self.cache.prompt_tokens


TestCachedPrefixes = CachedPrefixes.TestCase


def test_the_slot_that_holds_least_of_use_is_given_away() -> None:
    cache = SlotCache(2)
    first = allocated(cache, [1] * 50)
    cache.extend(first.slot, [1] * 50)
    cache.release(first.slot)
    other = allocated(cache, [2] * 50)
    assert other.slot != first.slot  # what it contents may be asked for again
    cache.extend(other.slot, [2] * 50)
    assert allocated(cache, [1] * 50 + [3]) == Allocation(first.slot, 50)


def test_a_busy_slot_is_copied_from() -> None:
    cache = SlotCache(2)
    first = allocated(cache, [1] * 50)
    cache.extend(first.slot, [1] * 50)
    assert allocated(cache, [1] * 49 + [2]) == Allocation(1 - first.slot, 49, first.slot)
    assert (cache.prompt_tokens, cache.cached_tokens) == (100, 49)


@given(st.lists(tokens, min_size=1, max_size=8))
def test_without_reuse_every_prompt_is_read_anew(prompts: list[list[int]]) -> None:
    cache = SlotCache(2)
    for prompt in prompts:
        allocation = allocated(cache, prompt, reuse=False)
        assert (allocation.cached, allocation.source) == (0, None)
        cache.extend(allocation.slot, prompt)
        cache.release(allocation.slot)
    assert cache.cached_tokens == 0


def test_a_prompt_waits_for_another_one_that_begins_like_it() -> None:
    cache = SlotCache(3)
    first = allocated(cache, [1] * 100)
    assert cache.allocate(CacheRequest([1] * 90 + [2], [])) is Refusal.WORTH_WAITING
    assert allocated(cache, [1] * 50 + [2]).cached == 0  # little to gain
    cache.extend(first.slot, [1] * 100)
    assert allocated(cache, [1] * 90 + [2]).cached == 90
    assert cache.allocate(CacheRequest([1], [])) is Refusal.NO_ROOM


def test_after_a_failed_step_busy_slots_share_nothing() -> None:
    cache = SlotCache(3)
    first = allocated(cache, [1] * 100)
    cache.extend(first.slot, [1] * 50)
    cache.clear()
    assert allocated(cache, [1] * 100).cached == 0  # and nobody waits for it
    cache.extend(first.slot, [7] * 50)  # the second half
    assert allocated(cache, [7] * 50).cached == 0
