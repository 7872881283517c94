"""Attention of decoding rows to the prefix that they share, read once for a tile of rows.

Cascade inference: Ye et al., 2024, https://flashinfer.ai/2024/02/02/cascade-inference.html;
Hydragen: Juravsky et al., 2024, https://arxiv.org/abs/2402.05099. The rows of a tile times the
query heads of a key head are one matrix, so that the prefix's keys are read once for them and the
tensor cores are full. What it gives are parts of a softmax, with which `decode_kernel` begins.

The grid is as large as the GPU, whatever is shared: its programs take the tiles in turn, so that a
CUDA graph can hold the call and a step in which nothing is shared costs a launch.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from worker.engines.transformers.model.dependent_launch import launch_options
from worker.engines.transformers.model.prefix_tiles import PrefixTile, padded_head_size
from worker.engines.transformers.model.step import MAX_PREFIXES, SharedPrefixes
from worker.engines.transformers.model.triton_kernels import (
    _LOWEST,
    _add_keys,
    _blocks,
    _offset,
    _parts,
    wait_if_early,
)

_WARPS = 4
_PROGRAMS = 264  # two for each of a H200's multiprocessors, as many as are resident
_MAX_PART = 1024  # keys of a part, unless there would be too many parts
_MAX_PARTIALS = 2048  # rows * parts that there is memory for: heads * head size * 4 bytes of each
_MIN_PROGRAMS = 64  # a prefix is split into at most 8 parts until there are so many


class PrefixParts(NamedTuple):
    """A softmax's parts of each row's prefix; [rows, heads, parts, ...] float32."""

    lengths: torch.Tensor  # [rows] int32 tokens of the prefix; 0: the row shares none
    maxima: torch.Tensor
    sums: torch.Tensor
    weighted: torch.Tensor  # [rows, heads, parts, head size]
    splits: int  # parts that every prefix is split into, if it is long enough
    max_parts: int  # of a row
    max_part: int  # keys of a part, if that is not too many parts


@triton.jit
def _find_tile(  # type: ignore[no-untyped-def]
    target, starts, tokens, splits, max_parts,
    TILE_ROWS: tl.constexpr, MAX_PART: tl.constexpr, BLOCK: tl.constexpr, PREFIXES: tl.constexpr,
):  # fmt: skip
    """The prefix that item number `target` belongs to, its number among the prefix's items, and how
    many items there are. An item is a part of a prefix, for a tile of the rows that share it.
    """
    index = tl.arange(0, PREFIXES)
    rows = tl.load(starts + index + 1) - tl.load(starts + index)
    length = tl.load(tokens + index)
    _, _, parts = _parts(length + 1, 0, 0, splits, max_parts, MAX_PART, BLOCK, False, False)
    items = tl.cdiv(rows, TILE_ROWS) * parts
    passed = tl.cumsum(items, 0) <= target
    prefix = tl.sum(passed.to(tl.int32), 0)
    before = tl.sum(tl.where(passed, items, 0), 0)
    return prefix, target - before, tl.sum(items, 0)


@triton.jit(do_not_specialize=["rows_count", "splits", "max_parts"])
def prefix_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, value_cache, block_tables, rows, members, starts, prefix_tokens, row_of_slot,
    part_maxima, part_sums, parts, rows_count, splits, max_parts, scale, softcap, to_log2,
    query_row, query_head, cache_block, cache_token, cache_head, table_row,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, MAX_PART: tl.constexpr, PREFIXES: tl.constexpr,
    SOFTCAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_if_early(PDL)
    TILE_ROWS: tl.constexpr = QUERIES // GROUP
    head = tl.program_id(0)
    index = tl.arange(0, QUERIES)
    dims = tl.arange(0, PADDED_SIZE)
    heads = tl.num_programs(0) * GROUP
    query_heads = head * GROUP + index % GROUP
    _, _, total = _find_tile(
        0, starts, prefix_tokens, splits, max_parts, TILE_ROWS, MAX_PART, BLOCK, PREFIXES
    )
    for item in range(tl.program_id(1), total, tl.num_programs(1)):
        prefix, number, _ = _find_tile(
            item, starts, prefix_tokens, splits, max_parts, TILE_ROWS, MAX_PART, BLOCK, PREFIXES
        )
        first_member = tl.load(starts + prefix)
        count = tl.load(starts + prefix + 1) - first_member
        length = tl.load(prefix_tokens + prefix)
        _, part_length, _ = _parts(
            length + 1, 0, 0, splits, max_parts, MAX_PART, BLOCK, False, False
        )
        tiles = tl.cdiv(count, TILE_ROWS)
        tile_rows = tl.cdiv(count, tiles)
        part = number // tiles  # tiles side by side read the same keys
        member = number % tiles * tile_rows + index // GROUP
        inside = (index // GROUP < tile_rows) & (member < count)
        slot = tl.load(members + first_member + member, mask=inside, other=0)
        row = tl.load(row_of_slot + slot, mask=inside, other=0)
        # what stands there for a slot that this step does not compute is of an earlier step
        inside = inside & (row < rows_count)
        inside = inside & (tl.load(rows + row, mask=inside, other=-1) == slot)
        valid = inside[:, None] & (dims < SIZE)[None, :]
        q = tl.load(
            query + row[:, None] * query_row + query_heads[:, None] * query_head + dims[None, :],
            mask=valid,
            other=0.0,
        )
        table = block_tables + tl.load(members + first_member).to(tl.int64) * table_row
        maximum = tl.full([QUERIES], _LOWEST, tl.float32)
        weight_sum = tl.zeros([QUERIES], tl.float32)
        weighted = tl.zeros([QUERIES, PADDED_SIZE], tl.float32)
        begin = part * part_length
        end = tl.minimum(length, begin + part_length)
        block = _blocks(table, begin + tl.arange(0, BLOCK), begin, end, PAGE)
        for start in range(begin, end, BLOCK):
            token = start + tl.arange(0, BLOCK)
            offset = _offset(block, token, cache_block, cache_token, PAGE)
            block = _blocks(table, token + BLOCK, begin, end, PAGE)
            maximum, weight_sum, weighted = _add_keys(
                q, key_cache + head * cache_head, value_cache + head * cache_head,
                offset, None, None, maximum, weight_sum, weighted,
                scale, softcap, to_log2, SIZE, PADDED_SIZE, SOFTCAP, False,
            )  # fmt: skip
        place = (row.to(tl.int64) * heads + query_heads) * max_parts + part
        tl.store(part_maxima + place, maximum, mask=inside)
        tl.store(part_sums + place, weight_sum, mask=inside)
        tl.store(parts + place[:, None] * SIZE + dims[None, :], weighted, mask=valid)


def split_prefix(rows: int, kv_heads: int, tile_rows: int) -> tuple[int, int]:
    """Of a step of so many rows, in tiles of `tile_rows`: parts that every prefix is split into if
    it is long enough, and the most parts. Each one more costs about a microsecond when it is added
    to the row's own keys, and two were faster than four even where they left half of an H200 idle.
    """
    max_parts = max(2, min(128, _MAX_PARTIALS // rows))
    tiles = triton.cdiv(rows, tile_rows)
    splits = triton.next_power_of_2(triton.cdiv(_MIN_PROGRAMS, tiles * kv_heads))
    return min(max(2, splits), 8, max_parts), max_parts


def attend_to_prefixes(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    prefixes: SharedPrefixes,
    tile: PrefixTile,
    scale: float,
    softcap: float,
    to_log2: float,
) -> PrefixParts:
    """`query` [rows, heads, head size] attends to the prefixes alone. The rest as in
    `triton_attention.decode`. Only the parts of rows that share a prefix are written.
    """
    count, heads, size = query.shape
    kv_heads, page = key_cache.shape[2], key_cache.shape[1]
    group, padded_size = heads // kv_heads, padded_head_size(size)
    splits, max_parts = split_prefix(count, kv_heads, tile.rows(group))
    maxima = torch.empty((count, heads, max_parts), device=query.device, dtype=torch.float32)
    sums = torch.empty_like(maxima)
    weighted = torch.empty((*maxima.shape, size), device=query.device, dtype=torch.float32)
    grid: Any = (kv_heads, max(1, _PROGRAMS // kv_heads))
    prefix_kernel[grid](
        query, key_cache, value_cache, block_tables, rows,
        prefixes.members, prefixes.starts, prefixes.tokens, prefixes.row_of_slot,
        maxima, sums, weighted, count, splits, max_parts, scale, softcap, to_log2,
        query.stride(0), query.stride(1),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2), block_tables.stride(0),
        GROUP=group, QUERIES=max(tile.queries, triton.next_power_of_2(group)),
        SIZE=size, PADDED_SIZE=padded_size, PAGE=page,
        BLOCK=tile.keys, MAX_PART=_MAX_PART, PREFIXES=MAX_PREFIXES, SOFTCAP=softcap > 0,
        num_warps=_WARPS, num_stages=tile.stages, **launch_options(query.device),
    )  # fmt: skip
    return PrefixParts(prefixes.lengths, maxima, sums, weighted, splits, max_parts, _MAX_PART)
