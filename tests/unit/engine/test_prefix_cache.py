"""Who gets which slot, against a plain model of what each slot contents."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from worker.engines.transformers.prefix_cache import PrefixCache, common_prefix

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
    """PrefixCache are taken, read into and left in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(3)
        self.contents: dict[int, list[int]] = {0: [], 1: [], 2: []}
        self.taken: dict[int, list[int]] = {}

    running: Bundle[int] = Bundle("running")

    @rule(target=running, prompt=tokens)
    def allocate(self, prompt: list[int]) -> object:
        if not self.cache.free:
            return multiple()
        allocation = self.cache.allocate(prompt)
        assert allocation.slot not in self.taken
        where = allocation.slot if allocation.source is None else allocation.source
        assert 0 <= allocation.cached < len(prompt)
        assert self.contents[where][: allocation.cached] == prompt[: allocation.cached]
        best = max(common_prefix(cached, prompt[:-1]) for cached in self.contents.values())
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

    @invariant()
    def counted(self) -> None:
        assert self.cache.free == 3 - len(self.taken)
        assert self.cache.cached_tokens <= self.cache.prompt_tokens


TestCachedPrefixes = CachedPrefixes.TestCase


def test_the_slot_that_holds_least_of_use_is_given_away() -> None:
    cache = PrefixCache(2)
    first = cache.allocate([1] * 50)
    cache.extend(first.slot, [1] * 50)
    cache.release(first.slot)
    other = cache.allocate([2] * 50)
    assert other.slot != first.slot  # what it contents may be asked for again
    cache.extend(other.slot, [2] * 50)
    assert cache.allocate([1] * 50 + [3]) == (first.slot, 50, None)


def test_a_busy_slot_is_copied_from() -> None:
    cache = PrefixCache(2)
    first = cache.allocate([1] * 50)
    cache.extend(first.slot, [1] * 50)
    assert cache.allocate([1] * 49 + [2]) == (1 - first.slot, 49, first.slot)
    assert (cache.prompt_tokens, cache.cached_tokens) == (100, 49)


@given(st.lists(tokens, min_size=1, max_size=8))
def test_without_reuse_every_prompt_is_read_anew(prompts: list[list[int]]) -> None:
    cache = PrefixCache(2)
    for prompt in prompts:
        allocation = cache.allocate(prompt, reuse=False)
        assert (allocation.cached, allocation.source) == (0, None)
        cache.extend(allocation.slot, prompt)
        cache.release(allocation.slot)
    assert cache.cached_tokens == 0
