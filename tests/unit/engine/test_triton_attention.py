"""The attention kernels without a GPU: Triton's interpreter runs them, against plain attention."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from tests.unit.engine.interpreted import interpreted
from worker.engines.transformers.model import paged_attention

F32, F16, BF16, F8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
_BOUNDS = {F32: 1e-5, F16: 4e-3, BF16: 3e-2}  # the interpreter truncates bfloat16
_NAN = float("nan")
_FILES = ("triton_kernels", "triton_prefill", "triton_prefix")


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    with interpreted("triton_attention", *_FILES) as module:
        yield module


class Heads(NamedTuple):
    """The shape of an attention layer, and what it does besides attending."""

    size: int = 64
    group: int = 1  # query heads that share a key head
    groups: int = 1  # key heads
    dtype: torch.dtype = F32
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    chunked: bool = False
    page: int = 16  # the cache's block size
    stored: torch.dtype | None = None  # of keys and values; None: `dtype`

    @property
    def scale(self) -> float:
        return 1.5 * self.size**-0.5

    def sink_logits(self) -> torch.Tensor | None:
        if not self.sinks:
            return None
        return torch.randn(self.groups * self.group).to(self.dtype) * 2


class Cache:
    """Blocks of some sequences in a random order, with NaN in all other places: in unused blocks,
    beyond a sequence's end, and before what a window still shows.
    """

    def __init__(self, layer: Heads, stored: Sequence[range]) -> None:
        """`stored`: the positions that are there, of each sequence."""
        page, most = layer.page, max(tokens.stop for tokens in stored)
        self.width = most // page + 1
        counts = [-(-tokens.stop // page) + 1 for tokens in stored]  # one more for the next token
        order = torch.randperm(sum(counts) + 1).int()
        self.tables = torch.full((len(stored) + 1, self.width), len(order) - 1, dtype=torch.int32)
        shape = (len(order), page, layer.groups, layer.size)
        dtype = layer.stored or layer.dtype
        self.keys = torch.full(shape, _NAN).to(dtype)
        self.values = torch.full(shape, _NAN).to(dtype)
        taken = 0
        for row, (tokens, count) in enumerate(zip(stored, counts, strict=True)):
            blocks = order[taken : taken + count][: self.width]
            taken += count
            self.tables[row, : len(blocks)] = blocks
            for position in tokens:
                place = blocks[position // page], position % page
                self.keys[place] = torch.randn(shape[2:]).to(dtype)
                self.values[place] = torch.randn(shape[2:]).to(dtype)

    def place(self, row: int, position: int) -> tuple[int, int]:
        page = self.keys.shape[1]
        return int(self.tables[row, position // page]), position % page


def in_another_layout(count: int, heads: int, layer: Heads) -> torch.Tensor:
    """[count, heads, size], with heads first in memory and a gap between them."""
    memory = torch.randn(heads, count + 1, layer.size).to(layer.dtype)
    return memory[:, 1:].transpose(0, 1)


def check(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, dtype)
    assert actual.is_contiguous()
    bound = _BOUNDS[dtype]
    torch.testing.assert_close(actual.float(), expected.float(), rtol=bound, atol=bound)


def decode(kernels: Any, query: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
    out = torch.full(query.shape, _NAN, dtype=query.dtype)
    kernels.decode(out, query, *given, **more)
    return out


# ---- decoding


class Step(NamedTuple):
    layer: Heads
    lengths: Sequence[int]
    max_part: int = 2048
    min_programs: int = 1  # as if the GPU were small, so that rows are not split


# Each pair of interacting features occurs once; keys are read 64 at a time, 32 of size 256.
STEPS = {
    "nothing is held": Step(Heads(groups=2), [1]),
    "less than a block": Step(Heads(80, 3), [2, 17, 16, 15]),
    "around a tile's end": Step(Heads(128, 4), [64, 65, 66], min_programs=6),
    "around a smaller tile's end": Step(Heads(256, 8, page=32), [34, 32, 33]),
    "parts for some of the rows": Step(Heads(80, 2, page=64), [700, 1, 130], min_programs=24),
    "a long row among short ones": Step(Heads(16, 4, 2), [1, 600, 30, 2, 400, 64], 128),
    "more parts than programs for them": Step(Heads(16), [900, 900], 64),
    "unused rows": Step(Heads(16, 4), [0, 30, 0, 200, 0], 64),
    "only unused rows": Step(Heads(16), [0, 0]),
    "more query heads than sixteen": Step(Heads(64, 20), [70, 3], min_programs=4),
    "more rows than are searched at once": Step(Heads(16, page=64), [1, *[0] * 270, 130, 2], 64),
    "a window below, at and above the length": Step(
        Heads(64, 4, window=40), [300, 41, 40, 39, 7, 0], min_programs=20
    ),
    "a window that many parts share": Step(Heads(96, window=300), [500, 20], 64),
    "a window of the newest token alone": Step(Heads(128, 3, window=1), [1, 65, 100]),
    "a window of two tokens across tiles": Step(Heads(window=2), [65, 66, 64]),
    "chunks": Step(Heads(64, 4, window=40, chunked=True), [300, 41, 40, 81, 80, 7, 0]),
    "chunks of many parts": Step(
        Heads(96, window=300, chunked=True, sinks=True), [599, 601], min_programs=20
    ),
    "capped": Step(Heads(64, 3, 2, softcap=3.0), [1, 150]),
    "capped within a window": Step(Heads(256, 4, window=25, softcap=1.0), [90, 20]),
    "sinks": Step(Heads(64, 8, 2, sinks=True), [1, 70, 0, 300], 64),
    "sinks, capped within a window": Step(
        Heads(64, 2, 2, sinks=True, window=100, softcap=2.0), [30, 250], min_programs=16
    ),
    "float16": Step(Heads(80, 4, dtype=F16), [1, 64, 200], 64),
    "float16, sinks within a window": Step(Heads(256, 3, dtype=F16, window=33, sinks=True), [100]),
    "bfloat16": Step(Heads(128, 8, dtype=BF16), [1, 65, 300], 128),
    "float8 keys": Step(Heads(128, 4, 2, F16, stored=F8), [1, 65, 0, 300], 64),
    "float8 keys, all features": Step(
        Heads(80, 3, 2, BF16, 40, 2.0, True, stored=F8), [30, 250], min_programs=16
    ),
    "bfloat16, capped": Step(Heads(64, 4, dtype=BF16, softcap=4.0, sinks=True), [500], 128),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_decoded_token_sees_its_own_sequence_and_is_kept_there(
    step: Step, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, lengths = step.layer, step.lengths
    monkeypatch.setattr(kernels, "_MIN_PROGRAMS", step.min_programs)
    monkeypatch.setattr(kernels, "_MAX_PART", step.max_part)
    monkeypatch.setattr(kernels, "_EXTRA_PROGRAMS", 3)
    torch.manual_seed(1)
    count, heads = len(lengths), layer.groups * layer.group
    stored = [range(_first(layer, length - 1), max(0, length - 1)) for length in lengths]
    cache = Cache(layer, stored)
    rows = torch.randperm(count).int()
    lengths = [lengths[row] for row in rows.tolist()]
    key = in_another_layout(count, layer.groups, layer)
    value = torch.randn(count, layer.groups + 2, layer.size).to(layer.dtype)[:, 1:-1]
    query, sinks = in_another_layout(count, heads, layer), layer.sink_logits()
    key, value = key.to(cache.keys.dtype), value.to(cache.keys.dtype)
    keys, values = cache.keys.clone(), cache.values.clone()
    for index, (row, length) in enumerate(zip(rows.tolist(), lengths, strict=True)):
        if length:
            place = cache.place(row, length - 1)
            keys[place], values[place] = key[index], value[index]
        else:
            query[index] = _NAN
            key[index] = torch.full(key.shape[1:], _NAN).to(key.dtype)
    counts = torch.tensor(lengths, dtype=torch.int32)
    more = (layer.scale, layer.window, layer.softcap, sinks, layer.chunked)
    actual = decode(
        kernels, query, key, value, cache.keys, cache.values, cache.tables, rows, counts, *more
    )
    for stored, expected in ((cache.keys, keys), (cache.values, values)):
        torch.testing.assert_close(stored.float(), expected.float(), rtol=0, atol=0, equal_nan=True)
    starts = torch.arange(count + 1)
    expected = paged_attention.attend(
        query, keys, values, cache.tables, rows, counts, starts, *more
    )
    check(actual, expected, layer.dtype)


def _first(layer: Heads, position: int) -> int:
    """The oldest token that the one at `position` sees."""
    if not layer.window:
        return 0
    if layer.chunked:
        return max(0, position) // layer.window * layer.window
    return max(0, position - layer.window + 1)


def test_rows_may_share_blocks(kernels: Any) -> None:
    torch.manual_seed(2)
    layer = Heads(16, 2)
    cache = Cache(layer, [range(70), range(64), range(0)])
    cache.tables[2, :4] = cache.tables[0, :4]  # the third continues the first one's prefix
    rows, lengths = torch.tensor([2, 0, 1]).int(), torch.tensor([65, 71, 65]).int()
    cache.tables[2, 4] = cache.tables[-1, 0]  # a block of its own
    query, key = torch.randn(3, 2, 16), torch.randn(3, 1, 16)
    actual = decode(
        kernels, query, key, key, cache.keys, cache.values, cache.tables, rows, lengths, 0.3, 0, 0.0
    )
    expected = paged_attention.attend(
        query, cache.keys, cache.values, cache.tables, rows, lengths, torch.arange(4), 0.3, 0, 0.0
    )
    check(actual, expected, F32)


def test_a_row_is_the_same_to_the_last_bit_whatever_the_lengths_beside_it(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_MAX_PART", 64)
    monkeypatch.setattr(kernels, "_EXTRA_PROGRAMS", 2)
    layer = Heads(16, 2)
    answers = []
    for others in ([3, 2], [900, 0]):
        torch.manual_seed(3)
        cache = Cache(layer, [range(299)])
        cache.tables = cache.tables[:1].expand(3, -1).contiguous()
        own = torch.randn(1, 2, 16)
        query, key = own.expand(3, -1, -1), own[:, :1].expand(3, -1, -1)
        widened = torch.nn.functional.pad(cache.tables, (0, 60), value=int(cache.tables[0, 0]))
        lengths = torch.tensor([300, *others]).int()
        rows = torch.zeros(3).int()
        key_cache, value_cache = cache.keys.clone(), cache.values.clone()
        given = (query, key, key, key_cache, value_cache, widened, rows, lengths, 0.3, 0, 0.0)
        answers.append(decode(kernels, *given)[0])
    assert torch.equal(answers[0], answers[1])


@pytest.mark.parametrize(
    ("rows", "kv_heads", "max_length", "expected"),
    [
        (1, 8, 131_072, (32, 64, 63)),  # parts of 2,048 keys
        (1, 8, 300, (32, 5, 4)),  # parts of 64 keys
        (8, 8, 8_192, (4, 4, 24)),
        (32, 8, 8_192, (1, 4, 64)),
        (256, 8, 2_048, (1, 1, 0)),
        (256, 8, 131_072, (1, 32, 64)),
        (1_024, 8, 131_072, (1, 8, 64)),  # parts of 16,384 keys, or their results take too much
        (1_024, 64, 131_072, (1, 8, 8)),
    ],
)
def test_rows_are_split_until_there_is_work_for_the_whole_gpu(
    rows: int, kv_heads: int, max_length: int, expected: tuple[int, int, int], kernels: Any
) -> None:
    assert kernels.split(rows, kv_heads, max_length) == expected


# ---- prefill


class Prompts(NamedTuple):
    layer: Heads
    chunks: Sequence[tuple[int, int]]  # position of the first token, tokens; 0 tokens: unused
    tile: tuple[int, int] = (32, 16)  # queries, keys
    after: int = 0  # tokens that belong to no chunk
    before: int = 0  # the same, of rows that decode


PROMPTS = {
    "one token": Prompts(Heads(), [(0, 1)]),
    "several tiles": Prompts(Heads(64, 4), [(0, 50)]),
    "a tile and its edge": Prompts(Heads(128, 2), [(0, 16), (16, 15), (15, 17)]),
    "at block ends": Prompts(Heads(80, 8, page=32), [(32, 32), (0, 32), (31, 1), (31, 2)]),
    "far into a prompt": Prompts(Heads(96, page=64), [(200, 7), (129, 30)]),
    "fewer keys than a tile has": Prompts(Heads(256, 4), [(0, 5), (3, 9)], (16, 64)),
    "a group that fits into no tile": Prompts(Heads(16, 3, 2), [(0, 23), (40, 11)]),
    "a group larger than a tile": Prompts(Heads(16, 40), [(0, 3), (20, 2)], (16, 16)),
    "unused chunks": Prompts(Heads(16, 2), [(0, 0), (5, 20), (0, 0), (0, 0), (9, 3), (0, 0)]),
    "nothing but unused chunks": Prompts(Heads(16), [(0, 0), (0, 0)], after=40),
    "tokens after the last chunk": Prompts(Heads(16, 4), [(8, 21), (0, 10), (0, 0)], after=29),
    "after a used last chunk": Prompts(Heads(16, 4, 2), [(8, 21), (0, 10)], after=1),
    "behind rows": Prompts(Heads(16, 4, 2), [(8, 21), (0, 10), (0, 0)], after=3, before=5),
    "behind rows of many tiles": Prompts(Heads(16, 4), [(0, 3), (9, 20)], before=50),
    "many chunks": Prompts(Heads(16), [(n % 7, n % 4) for n in range(70)], after=2),
    "a short window": Prompts(Heads(64, 2, window=5), [(0, 40), (100, 20), (3, 1)]),
    "a window of the newest token alone": Prompts(Heads(64, 2, window=1), [(0, 9), (33, 18)]),
    "a window longer than a prompt": Prompts(Heads(16, 4, window=500), [(0, 30), (30, 9)]),
    "capped": Prompts(Heads(64, 2, 2, softcap=3.0), [(0, 30), (90, 5)]),
    "capped within a window": Prompts(Heads(16, 4, window=33, softcap=1.0), [(0, 60), (90, 5)]),
    "sinks": Prompts(Heads(64, 4, 2, sinks=True), [(0, 20), (0, 0), (50, 9)], after=3),
    "sinks, capped within a window": Prompts(
        Heads(16, 4, sinks=True, window=20, softcap=2.0), [(0, 41), (70, 9)]
    ),
    "chunks": Prompts(
        Heads(64, 2, window=24, chunked=True, sinks=True), [(0, 40), (100, 30), (23, 2), (24, 1)]
    ),
    "float16": Prompts(Heads(128, 8, dtype=F16), [(0, 20), (60, 9)]),
    "bfloat16": Prompts(Heads(64, 4, dtype=BF16, sinks=True), [(0, 40), (60, 9)]),
    "float8 keys": Prompts(
        Heads(64, 4, 2, BF16, stored=F8, sinks=True, window=25), [(0, 40), (60, 9)]
    ),
    "bfloat16 within a window": Prompts(Heads(80, 1, 2, dtype=BF16, window=25), [(60, 30)]),
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_each_token_of_a_prompt_sees_those_before_it(
    prompts: Prompts, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, count = prompts.layer, len(prompts.chunks)
    tile = kernels.Tile(*prompts.tile, 4, 2)
    monkeypatch.setattr(kernels, "_FLOAT32_TILE", tile)
    monkeypatch.setattr(kernels, "_TILES", dict.fromkeys(kernels._TILES, tile))
    torch.manual_seed(4)
    stored = []
    for start, length in prompts.chunks:
        first = _first(layer, start)
        stored.append(range(first, start + length) if length else range(0))
    cache = Cache(layer, stored)
    rows = torch.arange(count).int()
    lengths = torch.tensor([tokens.stop for tokens in stored]).int()
    chunk_lengths = torch.tensor([prompts.before, *(length for _, length in prompts.chunks)])
    starts = chunk_lengths.cumsum(0).int()
    tokens = int(starts[-1]) + prompts.after
    query = in_another_layout(tokens, layer.groups * layer.group, layer)
    query[starts[-1] :] = query[: prompts.before] = _NAN
    given = (
        query, cache.keys, cache.values, cache.tables, rows, lengths, starts,
        layer.scale, layer.window, layer.softcap, layer.sink_logits(),
        layer.chunked,
    )  # fmt: skip
    actual = torch.full(query.shape, _NAN, dtype=query.dtype)
    actual[: prompts.before] = 0  # which it leaves as they are
    kernels.prefill(actual, *given)
    check(actual, paged_attention.attend(*given), layer.dtype)


@pytest.mark.parametrize("dtype", [F32, F8])
def test_keys_and_values_are_stored_where_they_belong(kernels: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    key, value = (in_another_layout(5, 3, Heads(80)).to(dtype) for _ in range(2))
    caches = [torch.zeros(4, 16, 3, 80, dtype=dtype) for _ in range(2)]
    places = torch.tensor([63, 0, 17, 18, 5])
    kernels.store(key, value, *caches, places)
    for cache, numbers in zip(caches, (key, value), strict=True):
        flat = cache.float().flatten(0, 1)
        assert torch.equal(flat[places], numbers.float())
        assert not flat[[at for at in range(64) if at not in places.tolist()]].any()


# ---- the reference


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(
    ("window", "chunked", "softcap"),
    [(0, False, 0.0), (7, False, 0.0), (0, False, 2.0), (7, False, 2.0), (7, True, 0.0)],
)
def test_the_reference_is_attention_written_out(
    window: int, chunked: bool, softcap: float, sinks: bool
) -> None:
    torch.manual_seed(5)
    layer = Heads(8, 2, 2, window=window, softcap=softcap, sinks=sinks, chunked=chunked)
    cache = Cache(layer, [range(40)])
    query, logits = torch.randn(30, 4, 8), layer.sink_logits()
    actual = paged_attention.attend(
        query, cache.keys, cache.values, cache.tables, torch.tensor([0]), torch.tensor([40]),
        torch.tensor([0, 30]), 0.5, window, softcap, logits, chunked,
    )  # fmt: skip
    for token, head in itertools.product(range(30), range(4)):
        position = token + 10
        first = _first(layer, position)
        places = [cache.place(0, seen) for seen in range(first, position + 1)]
        keys = torch.stack([cache.keys[place][head // 2] for place in places])
        values = torch.stack([cache.values[place][head // 2] for place in places])
        scores = keys @ query[token, head] * 0.5
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.exp()
        total = weights.sum() + (logits[head].exp() if logits is not None else 0.0)
        torch.testing.assert_close(actual[token, head], weights @ values / total)
