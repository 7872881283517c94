"""Attention on a GPU over a paged KV cache, by the kernels of `triton_kernels`.

Keys and values are in blocks [blocks, block size, kv heads, head size], block size a power of two.
`block_tables` [sequences, blocks of each] int32 says where: position p of sequence s is in block
`block_tables[s, p // block size]`. The query heads that share a key head are more queries of it to
a kernel, so keys are read once for them. All grids follow from shapes alone: nothing of the data is
read on the host, and a CUDA graph can hold the calls.
"""

import math
from typing import Any, NamedTuple

import torch
import triton

from worker.engines.transformers.model.dependent_launch import launch_options
from worker.engines.transformers.model.prefix_tiles import (
    has_large_shared_memory,
    padded_head_size,
    prefix_tile,
)
from worker.engines.transformers.model.step import SharedPrefixes
from worker.engines.transformers.model.triton_kernels import (
    combine_kernel,
    decode_kernel,
    store_kernel,
)
from worker.engines.transformers.model.triton_prefill import prefill_kernel
from worker.engines.transformers.model.triton_prefix import PrefixParts, attend_to_prefixes

# ---- decoding

_BLOCK = 64  # keys read at a time: the best of 32, 64 and 128 on an H200 at every batch size tried
_DECODE_WARPS = 4
_DECODE_STAGES = 3
_SMALL_DECODE_STAGES = 2  # of heads of 512 where there is less shared memory
# Of so few programs, each with rows of its own, one more stage makes up for the second that a
# multiprocessor then has no room for: 7 % with 32 rows of 384 tokens on an H200.
_FEW_PROGRAMS, _FEW_PROGRAMS_STAGES = 256, 4
# A batch of fewer programs (rows * kv heads) splits its rows into parts until there are so many:
# about twice an H100's multiprocessors.
_MIN_PROGRAMS = 256
_MAX_PART = 2048  # keys of a part: a long row among short ones must not be one program's work
_EXTRA_PROGRAMS = 512  # that compute parts other than first ones: as many as are resident at once
_MAX_PARTIALS = 8192  # rows * parts that there is memory for: heads * head size * 4 bytes of each
_COMBINED_PARTS = 16  # read at a time
_COMBINE_WARPS = 2
_STORE_WARPS = 4

# ---- prefill


class Tile(NamedTuple):
    """How a program of `prefill` goes about its work."""

    queries: int  # tokens * the heads that share a key head
    keys: int  # read at a time
    warps: int
    stages: int


# By head size, rounded up to a power of two. Eight warps are two of Hopper's warp groups, each with
# 64 queries: with four, the accumulators of a head of 128 would not fit into the registers. They
# take up to 192 KiB of shared memory.
_TILES = {
    16: Tile(128, 64, 4, 3),
    32: Tile(128, 64, 4, 3),
    64: Tile(128, 64, 4, 3),
    128: Tile(128, 64, 8, 3),
    256: Tile(128, 64, 8, 2),
    512: Tile(64, 32, 8, 2),
}
# For GPUs that have less: up to 98 KiB.
_SMALL_TILES = {
    16: Tile(128, 64, 4, 3),
    32: Tile(128, 64, 4, 3),
    64: Tile(128, 64, 4, 3),
    128: Tile(128, 64, 8, 2),
    256: Tile(64, 32, 8, 2),
    512: Tile(32, 32, 8, 2),
}
_FLOAT32_TILE = Tile(32, 32, 4, 2)  # for tests: no tensor cores, and twice the memory


class Split(NamedTuple):
    """How a decoding step is divided among programs, as far as shapes tell."""

    splits: int  # parts that every row is split into, if it is long enough
    max_parts: int  # of a row
    extra_programs: int  # per kv head, beside one for each row


def split(rows: int, kv_heads: int, max_length: int) -> Split:
    """For sequences of at most `max_length` keys."""
    splits = triton.next_power_of_2(max(1, _MIN_PROGRAMS // (rows * kv_heads)))
    max_parts = max(splits, triton.cdiv(max_length, _MAX_PART))
    max_parts = min(max_parts, triton.cdiv(max_length, _BLOCK), max(1, _MAX_PARTIALS // rows))
    extra = min(rows * (max_parts - 1), triton.cdiv(_EXTRA_PROGRAMS, kv_heads))
    return Split(splits, max_parts, extra)


def decode(
    out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None = None,
    chunked: bool = False,
    longest: int = 0,
    prefixes: SharedPrefixes | None = None,
) -> None:
    """One token per row: stores `key` and `value` [rows, kv heads, head size] in the caches and
    attends with `query` [rows, heads, head size], into `out`, which is contiguous.

    `rows` [rows] int32: each one's sequence in `block_tables`. `lengths` [rows] int32: including
    the new token; 0: an unused row, whose output is zeros. `window`, `softcap`: 0: none. `chunked`:
    tokens from the last multiple of `window` on are seen. `sinks` [heads]: a logit that takes part
    in the softmax and has no value.

    `longest`: tokens that no row exceeds; 0: the length of its line in `block_tables`.
    `prefixes`: tokens that rows share, which are read once for many of them. Layers with a window
    do without, and heads for which there is no tile.

    How a row is split depends on its own length and on shapes, never on the other rows.
    """
    count, heads, size = query.shape
    kv_heads, page = key_cache.shape[2], key_cache.shape[1]
    if count == 0:
        return
    group, padded_size = heads // kv_heads, padded_head_size(size)
    max_length = longest or block_tables.shape[1] * page
    if window:
        max_length = min(max_length, window + _BLOCK)
    splits, max_parts, extra_programs = split(count, kv_heads, max_length)
    part_maxima = part_sums = parts = out  # unused by rows of a single part
    if max_parts > 1:
        shape = (count, heads, max_parts)
        part_maxima = torch.empty(shape, device=query.device, dtype=torch.float32)
        part_sums = torch.empty_like(part_maxima)
        parts = torch.empty((*shape, size), device=query.device, dtype=torch.float32)
    to_log2 = _to_log2(scale, softcap)
    prefix = PrefixParts(out, out, out, out, 1, 1, 1)  # not read
    tile = prefix_tile(padded_size, query.device)
    shares = prefixes is not None and tile is not None and not window
    if prefixes is not None and tile is not None and shares:
        prefix = attend_to_prefixes(
            query, key_cache, value_cache, block_tables, rows, prefixes, tile,
            scale, softcap, to_log2,
        )  # fmt: skip
    block, stages = _decode_tile(padded_size, query.device)
    few = splits == 1 and count * kv_heads <= _FEW_PROGRAMS
    if few and query.is_cuda and padded_size <= 128 and has_large_shared_memory(query.device):
        stages = _FEW_PROGRAMS_STAGES
    grid: Any = (kv_heads, count + extra_programs)
    decode_kernel[grid](
        query, key, value, key_cache, value_cache, block_tables, rows, lengths,
        out if sinks is None else sinks, out, part_maxima, part_sums, parts, *prefix[:4],
        count, splits, max_parts, prefix.splits, prefix.max_parts, scale, softcap, to_log2, window,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1),
        value.stride(0), value.stride(1),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2), block_tables.stride(0),
        GROUP=group, PADDED_GROUP=max(16, triton.next_power_of_2(group)),
        SIZE=size, PADDED_SIZE=padded_size, PAGE=page, BLOCK=block, MAX_PART=_MAX_PART,
        PREFIX=shares, PREFIX_MAX_PART=prefix.max_part,
        SOFTCAP=softcap > 0, WINDOW=window > 0, CHUNKED=chunked, SINKS=sinks is not None,
        num_warps=_DECODE_WARPS, num_stages=stages, **launch_options(query.device),
    )  # fmt: skip
    if max_parts > 1:
        # Few rows have parts in a large batch: then what counts is how soon the others are passed.
        combined_heads = group if count * kv_heads >= _MIN_PROGRAMS else 1
        combine_kernel[(heads // combined_heads, count)](
            part_maxima, part_sums, parts, lengths, prefix.lengths, out, window,
            splits, max_parts,
            SIZE=size, PADDED_SIZE=padded_size, HEADS=combined_heads, COMBINED=_COMBINED_PARTS,
            BLOCK=block, MAX_PART=_MAX_PART, PREFIX=shares, WINDOW=window > 0, CHUNKED=chunked,
            num_warps=_COMBINE_WARPS, **launch_options(query.device),
        )  # fmt: skip


def store(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Writes `key` and `value` [tokens, kv heads, head size] to the places `slot_mapping` [tokens]
    int64 of the flattened caches.
    """
    tokens, kv_heads, size = key.shape
    if tokens == 0:
        return
    if key.dtype.itemsize == 1:  # not every GPU's compiler knows float8
        key, value, key_cache, value_cache = (
            each.view(torch.uint8) for each in (key, value, key_cache, value_cache)
        )
    grid: Any = (tokens, 2)
    store_kernel[grid](
        key, value, key_cache, value_cache, slot_mapping,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        KV_HEADS=kv_heads, PADDED_HEADS=triton.next_power_of_2(kv_heads),
        SIZE=size, PADDED_SIZE=triton.next_power_of_2(size), num_warps=_STORE_WARPS,
        **launch_options(key.device),
    )  # fmt: skip


def prefill(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    lengths: torch.Tensor,
    chunk_starts: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None = None,
    chunked: bool = False,
) -> None:
    """Chunks of prompts, whose keys and values are in the caches already: chunk c is the tokens
    `chunk_starts[c]:chunk_starts[c + 1]` of `query` [tokens, heads, head size], the newest of the
    `lengths[c]` tokens of sequence `rows[c]`. All three are int32.

    Equal starts: an unused chunk. Tokens before the first chunk stay as they are in `out`, which is
    contiguous; those after the last one give zeros. The rest as in `decode`.
    """
    tokens, heads, size = query.shape
    chunks, (_, page, kv_heads, _) = rows.shape[0], key_cache.shape
    if tokens == 0 or chunks == 0:
        return
    group, padded_size = heads // kv_heads, padded_head_size(size)
    tile = _tile(query, padded_size)
    queries = max(tile.queries, triton.next_power_of_2(group))
    grid: Any = (tokens // (queries // group) + chunks, kv_heads)
    prefill_kernel[grid](
        query, key_cache, value_cache, block_tables, rows, lengths, chunk_starts,
        out if sinks is None else sinks, out,
        tokens, chunks, scale, softcap, _to_log2(scale, softcap), window,
        query.stride(0), query.stride(1),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2), block_tables.stride(0),
        GROUP=group, QUERIES=queries, KEYS=tile.keys, SIZE=size, PADDED_SIZE=padded_size, PAGE=page,
        SOFTCAP=softcap > 0, WINDOW=window > 0, CHUNKED=chunked, SINKS=sinks is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _decode_tile(padded_size: int, device: torch.device) -> tuple[int, int]:
    """Keys read at a time, and stages."""
    if padded_size <= 128:
        return _BLOCK, _DECODE_STAGES
    if padded_size <= 256 or device.type != "cuda" or has_large_shared_memory(device):
        return _BLOCK // 2, _DECODE_STAGES
    return _BLOCK // 2, _SMALL_DECODE_STAGES


def _tile(query: torch.Tensor, padded_size: int) -> Tile:
    if query.dtype == torch.float32:
        return _FLOAT32_TILE
    if query.is_cuda and not has_large_shared_memory(query.device):
        return _SMALL_TILES[padded_size]
    return _TILES[padded_size]


def _to_log2(scale: float, softcap: float) -> float:
    """What a score is multiplied with to become a power of two. A cap needs the scale first."""
    if softcap:
        return math.log2(math.e)
    return scale * math.log2(math.e)
