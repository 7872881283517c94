"""Decoding with SDPA: rows that are computed together give what each gives alone."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from worker.engines.transformers.model import attention
from worker.engines.transformers.model.attention import Bounds
from worker.engines.transformers.model.step import PrefillChunk, Step, group_rows

HEADS, SIZE, CONTEXT, SLOTS = 6, 16, 700, 12


def step(chunks: list[PrefillChunk], *, batch_invariant: bool) -> Step:
    slots = torch.tensor([chunk.slot for chunk in chunks])
    at = torch.tensor([chunk.start for chunk in chunks])
    return Step(
        slots * CONTEXT + at,
        slots.int(),
        (at + 1).int(),
        tuple(chunks),
        batch_invariant=batch_invariant,
    )


class Cache:
    """Random queries, keys and values for every slot."""

    def __init__(self, groups: int) -> None:
        torch.manual_seed(4)
        self.query = torch.randn(SLOTS, HEADS, SIZE)
        self.keys = torch.randn(SLOTS, CONTEXT, groups, SIZE)
        self.values = torch.randn(SLOTS, CONTEXT, groups, SIZE)

    def attend(
        self,
        chunks: list[PrefillChunk],
        window: int = 0,
        *,
        chunked: bool = False,
        sinks: torch.Tensor | None = None,
        batch_invariant: bool = False,
    ) -> torch.Tensor:
        query = self.query[[chunk.slot for chunk in chunks]]
        with torch.inference_mode():
            return attention._attend_with_sdpa(
                query,
                self.keys,
                self.values,
                step(chunks, batch_invariant=batch_invariant),
                Bounds(0.3, window, sinks=sinks, chunked=chunked),
            )

    def exact(self, chunk: PrefillChunk, sinks: torch.Tensor | None = None) -> torch.Tensor:
        """[heads, head size] in float64, without blocks."""
        end = chunk.start + 1
        repeat = HEADS // self.keys.shape[2]
        keys, values = (
            each[chunk.slot, :end].repeat_interleave(repeat, 1).double()
            for each in (self.keys, self.values)
        )
        scores = torch.einsum("hd,thd->ht", self.query[chunk.slot].double(), keys) * 0.3
        if sinks is not None:
            scores = torch.cat((scores, sinks.double()[:, None]), -1)
        return torch.einsum("ht,thd->hd", scores.softmax(-1)[:, :end], values).float()


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


LENGTHS = (1, 2, 127, 128, 129, 130, 400, 690, 3, 120, 126, 700)
CHUNKS = [PrefillChunk(slot, length - 1, 1) for slot, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_rows_of_all_lengths_see_what_is_theirs(groups: int) -> None:
    cache = Cache(groups)
    expected = torch.stack([cache.exact(chunk) for chunk in CHUNKS])
    torch.testing.assert_close(cache.attend(CHUNKS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_sink_takes_part_in_the_softmax_and_has_no_value(groups: int) -> None:
    cache, sinks = Cache(groups), torch.randn(HEADS) * 3
    expected = torch.stack([cache.exact(chunk, sinks) for chunk in CHUNKS])
    torch.testing.assert_close(cache.attend(CHUNKS, sinks=sinks), expected, rtol=1e-4, atol=1e-5)
    within = cache.attend(
        CHUNKS, window=CONTEXT - 1, sinks=sinks
    )  # row by row, for some are longer
    torch.testing.assert_close(within[:-1], expected[:-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    "picked",
    [
        [0, 1, 2, 3],
        [3, 2, 1, 0],
        [0, 1, 8, 9, 10],
        [10, 2, 3],
        [11, 0],
        [9, 10, 2, 3, 5, 4, 6, 7, 0, 11, 1, 8],
    ],
)
@pytest.mark.usefixtures("_threads")
def test_a_row_is_the_same_in_any_company_to_the_last_bit(groups: int, picked: list[int]) -> None:
    cache = Cache(groups)
    together = cache.attend([CHUNKS[slot] for slot in picked], batch_invariant=True)
    for row, slot in enumerate(picked):
        alone = cache.attend([CHUNKS[slot]], batch_invariant=True)[0]
        assert torch.equal(together[row], alone)
        torch.testing.assert_close(cache.attend([CHUNKS[each] for each in picked])[row], alone)


def test_windows_hide_what_is_older() -> None:
    cache = Cache(2)
    hidden = cache.attend(CHUNKS, window=100)
    for slot, length in enumerate(LENGTHS):
        cache.keys[slot, : max(0, length - 100)] = 1000.0  # would dominate if visible
    assert torch.equal(cache.attend(CHUNKS, window=100), hidden)


def test_chunks_hide_what_is_before_the_last_multiple_of_them() -> None:
    cache = Cache(2)
    hidden = cache.attend(CHUNKS, window=128, chunked=True)
    for slot, length in enumerate(LENGTHS):
        cache.keys[slot, : (length - 1) // 128 * 128] = 1000.0  # would dominate if visible
    assert torch.equal(cache.attend(CHUNKS, window=128, chunked=True), hidden)
    first = cache.exact(PrefillChunk(2, 126, 1))  # whose chunk is the sequence's first
    torch.testing.assert_close(hidden[2], first, rtol=1e-4, atol=1e-5)


@given(some.dictionaries(some.integers(0, 63), some.integers(0, CONTEXT - 1), min_size=1))
def test_every_row_is_in_one_block_and_blocks_are_half_full(held: dict[int, int]) -> None:
    chunks = [PrefillChunk(slot, start, 1) for slot, start in held.items()]
    blocks = group_rows(chunks, CONTEXT, torch.float32, torch.device("cpu"))
    rows = list(itertools.chain.from_iterable(block.rows.tolist() for block in blocks))
    assert sorted(rows) == list(range(len(chunks)))
    for block in blocks:
        assert block.end_slot - block.first_slot <= 2 * len(block.rows)
        assert 0 < block.length <= CONTEXT
        for row, spot in zip(block.rows.tolist(), block.offsets.tolist(), strict=True):
            assert block.first_slot + spot == chunks[row].slot
            seen = (block.mask[spot, 0, 0] == 0).tolist()
            assert seen == [True] * (chunks[row].start + 1) + [False] * (
                block.length - chunks[row].start - 1
            )


def test_neighbours_of_one_length_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", counted)
    Cache(2).attend([PrefillChunk(slot, 50 + slot, 1) for slot in range(8)])
    assert len(calls) == 1
