"""Which decoding sequences are grouped by the blocks that they share."""

import random

from worker.engines.transformers.cache.block_hashes import first_parent, hash_blocks
from worker.engines.transformers.cache.manager import Allocation, CacheRequest
from worker.engines.transformers.cache.paged_cache import PagedCache
from worker.engines.transformers.cache.shared_prefixes import SharedPrefixTree
from worker.engines.transformers.model.step import MAX_PREFIXES, SharedPrefix
from worker.engines.transformers.model.window import Window

BLOCK = 16
TILE_ROWS = 16


def blocks(*parts: tuple[int, int]) -> list[int]:
    """(first block, how many) of each part."""
    return [block for first, count in parts for block in range(first, first + count)]


def tree_of(sequences: dict[int, list[int]]) -> SharedPrefixTree:
    tree = SharedPrefixTree(BLOCK, TILE_ROWS)
    for slot, own in sequences.items():
        tree.add(slot, own)
    return tree


def test_sequences_on_one_system_prompt_are_a_group() -> None:
    tree = tree_of({slot: blocks((0, 62), (100 * slot, 9)) for slot in range(1, 65)})
    # 62 blocks are 992 tokens, which is 15 strides of 64 tokens
    assert tree.prefixes == [SharedPrefix(960, tuple(range(1, 65)))]


def test_two_system_prompts_are_two_groups() -> None:
    first = {slot: blocks((0, 128), (1000 * slot, 4)) for slot in range(1, 9)}
    second = {slot: blocks((500, 64), (1000 * slot, 4)) for slot in range(9, 30)}
    assert tree_of({**first, **second}).prefixes == [
        SharedPrefix(1024, tuple(range(9, 30))),
        SharedPrefix(2048, tuple(range(1, 9))),
    ]


def test_a_long_prefix_of_several_is_worth_more_than_a_short_one_of_all() -> None:
    sequences = {slot: blocks((0, 64), (1000 * slot, 4)) for slot in range(1, 56)}
    choices = {slot: blocks((0, 64), (500, 64)) for slot in range(56, 64)}
    assert tree_of(sequences | choices).prefixes == [
        SharedPrefix(1024, tuple(range(1, 56))),
        SharedPrefix(2048, tuple(range(56, 64))),
    ]
    few = {slot: blocks((0, 64), (500, 32)) for slot in range(56, 60)}
    assert tree_of(sequences | few).prefixes == [SharedPrefix(1024, tuple(range(1, 60)))]


def test_little_or_nothing_shared_is_no_group() -> None:
    apart = {slot: blocks((1000 * slot, 64)) for slot in range(64)}
    short = {slot: blocks((0, 15), (1000 * slot, 64)) for slot in range(1, 64)}
    few = {slot: blocks((0, 64), (1000 * slot, 64)) for slot in range(1, 4)}
    for sequences in (apart, short, few, {1: [], 2: blocks((0, 3))}):
        assert tree_of(sequences).prefixes == []


def test_groups_follow_the_sequences() -> None:
    tree = tree_of({slot: blocks((0, 64), (100 * slot, 4)) for slot in range(1, 21)})
    before = tree.prefixes
    tree.add(30, blocks((7000, 90)))
    assert tree.prefixes is before  # nothing has to be uploaded
    tree.remove(30)
    tree.remove(31)
    assert tree.prefixes is before
    tree.remove(7)
    assert tree.prefixes == [SharedPrefix(1024, tuple(slot for slot in range(1, 21) if slot != 7))]
    tree.add(1, blocks((7000, 90)))  # another sequence in the slot
    assert 1 not in tree.prefixes[0].slots
    for slot in range(1, 21):
        tree.remove(slot)
    assert tree.prefixes == []


def test_a_tree_that_has_changed_often_is_as_one_built_anew() -> None:
    chance = random.Random(7)
    tree, sequences = SharedPrefixTree(BLOCK, TILE_ROWS), dict[int, list[int]]()
    for _ in range(600):
        slot = chance.randrange(40)
        if chance.random() < 0.4:
            tree.remove(slot)
            sequences.pop(slot, None)
        else:
            path: list[int] = []
            while chance.random() < 0.85:  # some equal, some the beginning of others
                step = chance.randrange(3) if chance.random() < 0.3 else 0
                path += range(1000 * step + len(path), 1000 * step + len(path) + 7)
            sequences[slot] = path
            tree.add(slot, path)
        prefixes = tree.prefixes
        assert set(prefixes) == set(tree_of(sequences).prefixes)
        grouped = [slot for prefix in prefixes for slot in prefix.slots]
        assert len(grouped) == len(set(grouped))
        for prefix in prefixes:
            count = prefix.tokens // BLOCK
            assert len({tuple(sequences[slot][:count]) for slot in prefix.slots}) == 1
            assert all(len(sequences[slot]) >= count for slot in prefix.slots)


def test_there_are_no_more_groups_than_the_kernel_takes() -> None:
    many = {slot: blocks((100 * (slot // 4), 64)) for slot in range(4 * MAX_PREFIXES + 20)}
    assert len(tree_of(many).prefixes) == MAX_PREFIXES


def test_prompts_nested_in_each_other_are_no_deep_recursion() -> None:
    assert tree_of({slot: blocks((0, 4 * slot)) for slot in range(1, 1025)}).prefixes


# ---- the cache's side


def allocate(cache: PagedCache, ids: list[int], *, reuse: bool = True) -> Allocation:
    hashes = hash_blocks(ids, BLOCK, first_parent(0))
    given = cache.allocate(CacheRequest(ids, hashes, reuse=reuse))
    assert isinstance(given, Allocation)
    return given


def decoding(cache: PagedCache, ids: list[int], *, reuse: bool = True) -> int:
    """The slot of a sequence that has computed its prompt."""
    given = allocate(cache, ids, reuse=reuse)
    cache.extend(given.slot, ids[given.cached :])
    return given.slot


def test_sequences_are_grouped_from_the_end_of_their_prompts_until_they_leave() -> None:
    cache = PagedCache(20, 2_000, BLOCK, prefix_tile_rows=TILE_ROWS)
    system = list(range(1000))
    slots = [decoding(cache, [*system, *[slot] * 40]) for slot in range(16)]
    assert cache.shared_prefixes == [SharedPrefix(960, tuple(sorted(slots)))]
    late = allocate(cache, [*system, *[99] * 40])
    cache.extend(late.slot, [99] * 8)
    assert late.slot not in cache.shared_prefixes[0].slots  # its prompt is being computed
    cache.extend(late.slot, [99] * 40)
    assert late.slot in cache.shared_prefixes[0].slots
    cache.extend(late.slot, [7])  # tokens of the answer change nothing
    cache.grow(late.slot, 1_100)
    before = cache.shared_prefixes
    cache.extend(late.slot, [8])
    assert cache.shared_prefixes is before
    cache.release(late.slot)
    assert late.slot not in cache.shared_prefixes[0].slots
    assert len(cache.shared_prefixes[0].slots) == 16
    cache.release_all_but(slots[:3])
    assert cache.shared_prefixes == []


def test_a_preempted_sequence_is_grouped_again_by_the_blocks_that_it_gets_then() -> None:
    cache = PagedCache(20, 2_000, BLOCK, prefix_tile_rows=TILE_ROWS)
    system = list(range(1000))
    slots = [decoding(cache, [*system, *[slot] * 40]) for slot in range(16)]
    cache.release(slots[3])
    again = decoding(cache, [*system, *[3] * 40, 5, 6, 7])
    assert cache.shared_prefixes == [SharedPrefix(960, tuple(sorted({*slots, again})))]


def test_reproducible_sequences_are_in_no_group() -> None:
    cache = PagedCache(20, 2_000, BLOCK, prefix_tile_rows=TILE_ROWS)
    system = list(range(1000))
    slots = [decoding(cache, [*system, *[slot] * 40]) for slot in range(16)]
    decoding(cache, [*system, 5, 6], reuse=False)
    assert cache.shared_prefixes == [SharedPrefix(960, tuple(sorted(slots)))]


def test_layers_without_a_window_are_grouped_if_they_are_one_group() -> None:
    system = list(range(1000))
    for windows, groups in [
        ((Window(), Window(64)), 1),
        ((Window(64), Window()), 1),
        ((Window(64), Window(32)), 0),
        ((Window(), Window(), Window(64)), 0),
    ]:
        cache = PagedCache(20, 6_000, BLOCK, windows, prefix_tile_rows=TILE_ROWS)
        for slot in range(16):
            decoding(cache, [*system, *[slot] * 40])
        assert len(cache.shared_prefixes) == groups
