"""Shared prefixes of decoding rows without a GPU: Triton's interpreter, against plain attention."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch

from tests.unit.engine.test_triton_attention import BF16, Cache, Heads, check, decode, kernels
from worker.engines.transformers.model import paged_attention
from worker.engines.transformers.model.step import MAX_PREFIXES, SharedPrefixes

__all__ = ["kernels"]


class Group(NamedTuple):
    """Rows that share a prefix."""

    tokens: int
    lengths: Sequence[int]  # of the rows, prefix included
    absent: int = 0  # of its sequences that the step does not compute


class Case(NamedTuple):
    layer: Heads
    groups: Sequence[Group]
    alone: Sequence[int] = ()  # lengths of rows that share nothing
    max_part: int = 512
    splits: int = 1


CASES = {
    "two rows": Case(Heads(64, 4), [Group(64, [66, 100])]),
    "a row of the prefix and its newest token": Case(Heads(16), [Group(64, [65, 65])]),
    "several groups": Case(
        Heads(16, 4, 2), [Group(128, [140, 300]), Group(64, [65, 70, 75])], [1, 30, 0]
    ),
    "tiles of rows": Case(Heads(64, 20), [Group(64, [65, 66, 67, 68, 69, 70, 71])], [9]),
    "a group larger than a tile": Case(Heads(16, 80), [Group(64, [65, 99])]),
    "more rows than a tile has": Case(Heads(16, 3), [Group(64, [65 + n for n in range(23)])]),
    "parts of a prefix": Case(Heads(16, 2), [Group(320, [350, 400]), Group(64, [70, 80])], [], 64),
    "parts of a prefix and of the row": Case(Heads(32, 2), [Group(192, [193, 700])], [600], 64),
    "absent rows": Case(
        Heads(16, 2), [Group(64, [70], 2), Group(64, [80, 90], 1), Group(64, [], 2)]
    ),
    "nothing is shared": Case(Heads(64, 4), [], [5, 70, 0]),
    "a large head": Case(Heads(256, 2), [Group(128, [129, 170])], [3]),
    "a padded head": Case(Heads(80, 2, page=32), [Group(64, [90, 70])]),
    "capped": Case(Heads(16, 2, softcap=2.0), [Group(128, [129, 170])], [40], 64),
    "sinks": Case(Heads(16, 2, 2, sinks=True), [Group(128, [129, 170])], [40], 64),
    "a window": Case(Heads(16, 2, window=30), [Group(128, [129, 170])], [40]),
    "bfloat16": Case(Heads(128, 4, dtype=BF16), [Group(128, [129, 170, 200])], [40], 64),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows_see_the_prefix_that_they_share(
    case: Case, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(6)
    layer = case.layer
    prefix_module = kernels.attend_to_prefixes.__globals__
    monkeypatch.setitem(prefix_module, "_MAX_PART", case.max_part)
    monkeypatch.setitem(prefix_module, "_PROGRAMS", 3 * layer.groups)
    monkeypatch.setattr(kernels, "_MAX_PART", case.max_part)
    monkeypatch.setattr(kernels, "_MIN_PROGRAMS", 1)
    lengths, first_slots = list[int](), list[int]()
    for group in case.groups:
        first_slots.append(len(lengths))
        lengths += [*group.lengths, *[group.tokens + 1] * group.absent]
    lengths += case.alone
    cache = Cache(layer, [range(max(0, length - 1)) for length in lengths])
    members: list[int] = []
    starts, tokens, computed = [0], [], []
    for group, first in zip(case.groups, first_slots, strict=True):
        slots = list(range(first, first + len(group.lengths) + group.absent))
        blocks = group.tokens // layer.page
        cache.tables[slots, :blocks] = cache.tables[first, :blocks].clone()
        members += slots[::-1]
        starts.append(len(members))
        tokens.append(group.tokens)
        computed += slots[: len(group.lengths)]
    computed += range(len(members), len(lengths))
    prefix_by_slot = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    for start, end, length in zip(starts, starts[1:], tokens, strict=False):
        prefix_by_slot[members[start:end]] = length
    rows = torch.tensor(computed)[torch.randperm(len(computed))].int()
    row_of_slot = torch.randint(0, 99, (len(lengths) + 1,)).int()  # of an earlier step
    row_of_slot[rows.long()] = torch.arange(len(rows)).int()
    prefixes = SharedPrefixes(
        members=padded(members, len(lengths), 0),
        starts=padded(starts, MAX_PREFIXES + 1, starts[-1]),
        tokens=padded(tokens, MAX_PREFIXES, 0),
        row_of_slot=row_of_slot,
        lengths=prefix_by_slot[rows.long()],
    )
    counts = torch.tensor(lengths).int()[rows.long()]
    heads = layer.groups * layer.group
    query = torch.randn(len(rows), heads, layer.size).to(layer.dtype)
    key, value = torch.randn(2, len(rows), layer.groups, layer.size).to(layer.dtype)
    more = (layer.scale, layer.window, layer.softcap, layer.sink_logits())
    actual = decode(
        kernels,
        query,
        key,
        value,
        cache.keys,
        cache.values,
        cache.tables,
        rows,
        counts,
        *more,
        prefixes=prefixes,
    )
    expected = paged_attention.attend(
        query, cache.keys, cache.values, cache.tables, rows, counts,
        torch.arange(len(rows) + 1), *more,
    )  # fmt: skip
    check(actual, expected, layer.dtype)


def padded(values: list[int], length: int, fill: int) -> torch.Tensor:
    return torch.tensor([*values, *[fill] * (length - len(values))], dtype=torch.int32)
