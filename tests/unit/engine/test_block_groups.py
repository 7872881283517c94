"""Layers with another window have other blocks, all of one size."""

from itertools import pairwise

from worker.engines.transformers.model.block_groups import BlockGroups, LayerPlace, group_layers
from worker.engines.transformers.model.cache_size import (
    BLOCK_SIZE,
    BlockSplit,
    CacheSize,
    size_for_pages,
)
from worker.engines.transformers.model.window import Window

FULL, SHORT, CHUNK = Window(), Window(128), Window(8192, chunked=True)


def grouped(windows: list[Window], shapes: list[int] | None = None) -> BlockGroups:
    groups = group_layers(windows, shapes or [1] * len(windows))
    assert len(set(groups.places)) == len(windows)  # no two layers in one place
    assert {place.group for place in groups.places} == set(range(len(groups.windows)))
    assert all(place.layer < groups.size for place in groups.places)
    for place, window in zip(groups.places, windows, strict=True):
        assert groups.windows[place.group] in (window, FULL)
    return groups


def test_layers_that_alternate_are_two_groups() -> None:
    groups = grouped([SHORT, FULL] * 12)
    assert groups.windows == (FULL, SHORT)
    assert (groups.size, groups.per_token) == (12, 2)
    assert groups.places[:3] == (LayerPlace(1, 0), LayerPlace(0, 0), LayerPlace(1, 1))


def test_more_layers_of_one_kind_are_several_groups() -> None:
    assert grouped([CHUNK, CHUNK, CHUNK, FULL] * 12).windows == (FULL, CHUNK, CHUNK, CHUNK)
    gemma = grouped([FULL if layer % 6 == 5 else SHORT for layer in range(62)])
    assert (gemma.size, gemma.windows) == (10, (FULL, *[SHORT] * 6))  # two places are unused
    assert gemma.per_token == 6.2


def test_layers_of_one_kind_are_one_group() -> None:
    assert grouped([SHORT] * 32).windows == (SHORT,)
    assert grouped([FULL] * 32).windows == (FULL,)


def test_where_it_does_not_pay_nothing_is_given_back() -> None:
    for windows, shapes in (
        ([SHORT, FULL] * 6, [1, 2] * 6),  # blocks would be of two sizes
        ([FULL] + [SHORT] * 19, None),  # twenty block tables
        ([FULL, FULL, SHORT, SHORT, SHORT, FULL, FULL], None),  # an eighth and a ninth place
    ):
        assert grouped(windows, shapes).windows == (FULL,)


def test_blocks_of_groups_take_the_memory_that_there_is() -> None:
    groups = grouped([SHORT, FULL] * 12)
    split = BlockSplit(len(groups.windows), groups.per_token)
    one, two = (
        size_for_pages(10_000, 1 << 17, 4, (), split=split) for split in (BlockSplit(), split)
    )
    assert one is not None
    assert two is not None
    memory = 10_000 // BLOCK_SIZE * 24  # in layers of a block
    for size, layers in ((one, 24), (two, groups.size)):
        assert memory - 24 <= (size.blocks + 1) * layers <= memory
    assert two == CacheSize(4, one.context, 2 * one.blocks + 1)  # one sequence still has room


def test_more_memory_never_gives_a_shorter_context() -> None:
    gemma = BlockSplit(7, 6.2)
    sizes = [size_for_pages(tokens, 4096, 4, (), gemma) for tokens in range(700, 9000, 100)]
    assert all(size is not None for size in sizes)
    for less, more in pairwise(size for size in sizes if size is not None):
        assert less.context <= more.context
        assert 7 * less.context <= less.blocks * BLOCK_SIZE
