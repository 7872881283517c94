"""Who gets which blocks, against a plain model of what each block contains."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from worker.engines.transformers.cache.block_hashes import first_parent, hash_blocks
from worker.engines.transformers.cache.manager import Allocation, CacheRequest, Refusal
from worker.engines.transformers.cache.paged_cache import PagedCache
from worker.engines.transformers.model.window import Window

SIZE = 4
SLOTS, BLOCKS = 4, 24


def request(
    ids: list[int], *, reuse: bool = True, group: int = 0, reserved: int = 0
) -> CacheRequest:
    hashes = hash_blocks(ids, SIZE, first_parent(group))
    return CacheRequest(ids, hashes, reuse=reuse, group=group, reserved_tokens=reserved)


def allocated(
    cache: PagedCache, ids: list[int], *, reuse: bool = True, group: int = 0
) -> Allocation:
    allocation = cache.allocate(request(ids, reuse=reuse, group=group))
    assert isinstance(allocation, Allocation)
    return allocation


tokens = st.lists(st.integers(0, 1), min_size=1, max_size=30)


@given(tokens, tokens)
def test_equal_hashes_mean_equal_beginnings(first: list[int], second: list[int]) -> None:
    pairs = zip(hash_blocks(first, SIZE, b"0"), hash_blocks(second, SIZE, b"0"), strict=False)
    for number, (one, other) in enumerate(pairs, 1):
        assert (one == other) == (first[: number * SIZE] == second[: number * SIZE])
    assert hash_blocks(first, SIZE, b"0")[:1] != hash_blocks(first, SIZE, b"1")[:1] or not (
        len(first) >= SIZE
    )


class Written(RuleBasedStateMachine):
    """Sequences come, grow and go. `content` is what the device's memory would hold."""

    windows: tuple[Window, ...] = (Window(),)

    def __init__(self) -> None:
        super().__init__()
        self.count = BLOCKS * len(self.windows)
        self.cache = PagedCache(SLOTS, self.count, SIZE, self.windows)
        # the last one is the spare block, which holds nothing
        self.content: dict[int, list[object]] = {n: [None] * SIZE for n in range(self.count + 1)}
        self.blocks: dict[int, list[list[int]]] = {}  # by slot, of each group
        self.ids: dict[int, list[int]] = {}

    running: Bundle[int] = Bundle("running")

    def tables(self, blocks: tuple[int, ...]) -> list[list[int]]:
        width = len(blocks) // len(self.windows)
        return [list(blocks[start : start + width]) for start in range(0, len(blocks), width)]

    def write(self, slot: int, start: int, ids: list[int]) -> None:
        for position, token in enumerate(ids, start):
            for group, table in enumerate(self.blocks[slot]):
                self.content[table[position // SIZE]][position % SIZE] = (group, token)
        self.cache.extend(slot, ids)

    def check(self, slot: int, ids: list[int]) -> None:
        """What the token after `ids` sees is there."""
        for group, window in enumerate(self.windows):
            for position in range(window.first_visible(len(ids)), len(ids)):
                block = self.blocks[slot][group][position // SIZE]
                assert self.content[block][position % SIZE] == (group, ids[position])

    def used(self, slot: int, length: int) -> set[int]:
        """The blocks of a sequence whose next token is at that position."""
        used: set[int] = set()
        for window, table in zip(self.windows, self.blocks[slot], strict=True):
            used.update(table[window.first_visible(length) // SIZE :])
        return used

    @rule(target=running, ids=tokens, reserved=st.integers(0, 30))
    def allocate(self, ids: list[int], reserved: int) -> object:
        room = self.cache.free_tokens
        allocation = self.cache.allocate(request(ids, reserved=reserved))
        if isinstance(allocation, Refusal):
            return multiple()
        slot = allocation.slot
        assert slot not in self.blocks
        assert allocation.cached < len(ids)
        assert self.cache.free_tokens <= room
        self.blocks[slot] = tables = self.tables(allocation.blocks)
        assert len(tables[0]) * SIZE > len(ids)
        self.check(slot, ids[: allocation.cached])
        own = {block for table in tables for block in table[allocation.cached // SIZE :]}
        assert self.count not in own
        for other in self.ids:
            assert not own & self.used(other, len(self.ids[other]))
        self.write(slot, allocation.cached, ids[allocation.cached :])
        self.ids[slot] = list(ids)
        return slot

    @rule(slot=running, more=tokens)
    def answer(self, slot: int, more: list[int]) -> None:
        for token in more:
            blocks = self.cache.grow(slot, len(self.ids[slot]) + 1)
            if blocks is None:
                return
            if blocks:
                pairs = zip(self.blocks[slot], self.tables(blocks), strict=True)
                for table, added in pairs:
                    table.extend(added)
            self.check(slot, self.ids[slot])
            self.write(slot, len(self.ids[slot]), [token])
            self.ids[slot].append(token)

    @rule(slot=running)
    def invalidate(self, slot: int) -> None:
        self.cache.invalidate(slot)

    @rule(slot=consumes(running))
    def release(self, slot: int) -> None:
        self.cache.release(slot)
        del self.blocks[slot], self.ids[slot]

    @rule()
    def clear(self) -> None:
        self.cache.clear()

    @invariant()
    def counted(self) -> None:
        used: set[int] = set()
        for slot, ids in self.ids.items():
            self.check(slot, ids)
            used |= self.used(slot, len(ids))
        assert self.cache.free_tokens == (self.count - len(used)) // len(self.windows) * SIZE


class WrittenWithWindows(Written):
    windows = (Window(), Window(6), Window(8, chunked=True))


class WrittenWithinOneWindow(Written):
    windows = (Window(9),)


TestWrittenWithWindows = WrittenWithWindows.TestCase
TestWrittenWithinOneWindow = WrittenWithinOneWindow.TestCase
TestWritten = Written.TestCase


def test_a_conversation_goes_on_where_it_was() -> None:
    cache = PagedCache(2, 20, SIZE)
    first = allocated(cache, [1, 2, 3, 4, 5])
    cache.extend(first.slot, [1, 2, 3, 4, 5])
    assert cache.grow(first.slot, 12) == (first.blocks[1] + 1,)
    cache.extend(first.slot, [6, 7, 8, 9, 10])  # an answer fills blocks, too
    cache.release(first.slot)
    second = allocated(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    assert second.cached == 8
    assert second.blocks[:2] == first.blocks[:2]
    assert (cache.prompt_tokens, cache.cached_tokens) == (16, 8)


def test_the_last_token_is_always_computed() -> None:
    cache = PagedCache(2, 20, SIZE)
    first = allocated(cache, [1] * 8)
    cache.extend(first.slot, [1] * 8)
    assert allocated(cache, [1] * 8).cached == 4


def test_a_beginning_that_is_being_computed_is_worth_waiting_for() -> None:
    cache = PagedCache(3, 200, SIZE)
    prompt = list(range(100))
    first = allocated(cache, prompt)
    assert cache.allocate(request([*prompt[:90], 7])) is Refusal.WORTH_WAITING
    assert allocated(cache, [*prompt[:30], 7]).cached == 0  # little to gain
    cache.extend(first.slot, prompt[:40])
    assert cache.allocate(request([*prompt[:60], 7])) is not Refusal.WORTH_WAITING
    cache.release(first.slot)  # it will not be computed any more
    assert allocated(cache, [*prompt[:90], 7]).cached == 40


def test_what_may_be_rounded_differently_is_not_shared() -> None:
    cache = PagedCache(4, 200, SIZE)
    first = allocated(cache, [1] * 20)
    cache.extend(first.slot, [1] * 20)
    assert allocated(cache, [1] * 20, reuse=False).cached == 0
    assert allocated(cache, [1] * 20, group=1).cached == 0
    assert allocated(cache, [1] * 20, group=-1).cached == 0


def test_the_end_of_the_oldest_prompt_leaves_first() -> None:
    cache = PagedCache(2, 12, SIZE)
    for token in (1, 2):
        allocation = allocated(cache, [token] * 20)  # six blocks each
        cache.extend(allocation.slot, [token] * 20)
        cache.release(allocation.slot)
    third = allocated(cache, [3] * 16)  # two blocks without content, three of the first prompt
    cache.extend(third.slot, [3] * 16)
    cache.release(third.slot)
    assert allocated(cache, [1] * 20).cached == 8
    assert allocated(cache, [2] * 9).cached == 8


def test_room_is_kept_for_those_that_run() -> None:
    cache = PagedCache(4, 10, SIZE)
    allocated(cache, [1] * 15)
    assert cache.allocate(request([2] * 11, reserved=16)) is Refusal.NO_ROOM
    assert isinstance(cache.allocate(request([2] * 11, reserved=12)), Allocation)


def test_a_failed_sequence_takes_nothing_from_those_before_it() -> None:
    cache = PagedCache(3, 60, SIZE)
    first = allocated(cache, [1] * 40)
    cache.extend(first.slot, [1] * 40)
    second = allocated(cache, [1] * 32 + [2] * 9)
    assert (second.cached, second.shared) == (32, 32)
    cache.extend(second.slot, [2] * 9)
    cache.invalidate(second.slot)
    cache.release(second.slot)
    assert allocated(cache, [1] * 32 + [2] * 9).cached == 32
    cache.release(first.slot)


def test_what_nobody_else_uses_is_not_shared() -> None:
    """It is cached, but takes room as anything else."""
    cache = PagedCache(3, 60, SIZE)
    first = allocated(cache, [1] * 40)
    cache.extend(first.slot, [1] * 40)
    cache.release(first.slot)
    again = allocated(cache, [1] * 41)
    assert (again.cached, again.shared) == (40, 0)


def test_a_window_gives_back_what_it_has_passed() -> None:
    cache = PagedCache(2, 2 * 12, SIZE, (Window(), Window(5)))
    ids = list(range(40))
    allocation = allocated(cache, ids)
    cache.extend(allocation.slot, ids)
    assert len(allocation.blocks) == 22
    assert cache.free_tokens == (2 + 9) // 2 * SIZE  # the token at 40 sees blocks 9 and 10
    cache.release(allocation.slot)
    again = allocated(cache, [*ids, 40])
    assert again.cached == 40
    assert again.blocks[11 : 11 + 9] == (24,) * 9  # the spare block: nobody reads it
    branch = allocated(cache, [*ids[:20], 41, 42])  # its window's blocks are cached still
    assert branch.cached == 20


def test_a_prompt_whose_window_is_gone_is_computed_again() -> None:
    cache = PagedCache(2, 14, SIZE, (Window(), Window(5)))
    ids = list(range(25))
    first = allocated(cache, ids)
    cache.extend(first.slot, ids)
    assert allocated(cache, [50, 51, 52, 53, 54]).cached == 0  # takes the blocks that were passed
    cache.release(first.slot)
    assert allocated(cache, ids[:14]).cached == 4  # of the block that nobody has taken yet
