"""Attention kernels for a GPU, over slots of any length. Decoding is a Triton kernel, so that many
multiprocessors share a long context and a short one costs its own bytes only. Prefill goes through
the flash attention that torch ships.

Flash decoding: Dao et al., 2023, https://pytorch.org/blog/flash-decoding/ - the keys of a sequence
are split, each part has its own softmax, and the parts are combined by their maxima.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from worker.engines.transformers.model.step import Step

_BLOCK = 64  # keys read at a time: the best of 32, 64 and 128 on an H200 at every batch size tried
_MAX_SPLITS = 16
_MIN_PROGRAMS = 256  # about twice an H100's multiprocessors: more would not hide more latency


@triton.jit
def _decode(  # type: ignore[no-untyped-def]  # noqa: PLR0915 - one kernel, read top to bottom
    query, key, value, key_cache, value_cache, slots, lengths,
    out, part_maxima, part_sums, parts, scale, window, softcap,
    query_row, query_head, key_row, key_head, value_row, value_head,
    cache_slot, cache_token, cache_head,
    GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr, SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    first = 0
    if WINDOW:
        first = tl.maximum(0, length - window) // BLOCK * BLOCK
    cached = length - 1  # tokens in the cache; the newest one is in registers below
    split_length = tl.cdiv(tl.cdiv(cached - first, SPLITS), BLOCK) * BLOCK
    begin = first + split * split_length
    end = tl.minimum(cached, begin + split_length)

    group = tl.arange(0, PADDED_GROUP)  # query heads that share a key head; tl.dot needs 16
    dims = tl.arange(0, PADDED_SIZE)
    valid = (group < GROUP)[:, None] & (dims < SIZE)[None, :]
    q = tl.load(
        query + row * query_row + (head * GROUP + group)[:, None] * query_head + dims[None, :],
        mask=valid,
        other=0.0,
    )
    base = tl.load(slots + row).to(tl.int64) * cache_slot + head * cache_head
    maximum = tl.full([PADDED_GROUP], float("-inf"), tl.float32)
    weight_sum = tl.zeros([PADDED_GROUP], tl.float32)
    weighted = tl.zeros([PADDED_GROUP, PADDED_SIZE], tl.float32)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        in_split = token < end
        offset = base + token * cache_token
        k = tl.load(
            key_cache + offset[None, :] + dims[:, None],
            mask=in_split[None, :] & (dims < SIZE)[:, None],
            other=0.0,
        )
        score = tl.dot(q, k) * scale
        if SOFTCAP:
            score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
        visible = in_split
        if WINDOW:
            visible = visible & (token >= length - window)
        score = tl.where(visible[None, :], score, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(score, 1))
        # -inf in a block that the window hides entirely
        safe_maximum = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        rescale = tl.exp(maximum - safe_maximum)
        weight = tl.exp(score - safe_maximum[:, None])
        v = tl.load(
            value_cache + offset[:, None] + dims[None, :],
            mask=in_split[:, None] & (dims < SIZE)[None, :],
            other=0.0,
        )
        weighted = weighted * rescale[:, None] + tl.dot(weight.to(v.dtype), v)
        weight_sum = weight_sum * rescale + tl.sum(weight, 1)
        maximum = new_maximum
    if split == 0:  # the newest token: store it, and attend to it
        valid_dims = dims < SIZE
        offset = base + cached * cache_token + dims
        new_key = tl.load(key + row * key_row + head * key_head + dims, mask=valid_dims, other=0.0)
        new_value = tl.load(
            value + row * value_row + head * value_head + dims, mask=valid_dims, other=0.0
        )
        tl.store(key_cache + offset, new_key, mask=valid_dims)
        tl.store(value_cache + offset, new_value, mask=valid_dims)
        score_of_new = tl.sum(q.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * scale
        if SOFTCAP:
            score_of_new = softcap * (2 * tl.sigmoid(2 * score_of_new / softcap) - 1)
        new_maximum = tl.maximum(maximum, score_of_new)
        rescale = tl.exp(maximum - new_maximum)
        weight = tl.exp(score_of_new - new_maximum)
        weighted = weighted * rescale[:, None] + weight[:, None] * new_value.to(tl.float32)[None, :]
        weight_sum = weight_sum * rescale + weight
        maximum = new_maximum
    heads = tl.num_programs(1) * GROUP
    index = row * heads + head * GROUP + group
    if SPLITS == 1:
        weighted = weighted / weight_sum[:, None]
        tl.store(
            out + index[:, None] * SIZE + dims[None, :],
            weighted.to(out.dtype.element_ty),
            mask=valid,
        )
    else:
        index = index * SPLITS + split
        tl.store(part_maxima + index, maximum, mask=group < GROUP)
        tl.store(part_sums + index, weight_sum, mask=group < GROUP)
        tl.store(parts + index[:, None] * SIZE + dims[None, :], weighted, mask=valid)


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    part_maxima, part_sums, parts, out,
    SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    split = index * SPLITS + tl.arange(0, SPLITS)
    dims = tl.arange(0, PADDED_SIZE)
    maximum = tl.load(part_maxima + split)
    weight = tl.exp(maximum - tl.max(maximum, 0))
    part = tl.load(
        parts + split[:, None] * SIZE + dims[None, :], mask=(dims < SIZE)[None, :], other=0.0
    )
    weight_sum = tl.sum(tl.load(part_sums + split) * weight, 0)
    combined = tl.sum(part * weight[:, None], 0) / weight_sum
    tl.store(out + index * SIZE + dims, combined.to(out.dtype.element_ty), mask=dims < SIZE)


def decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """One token per row: stores `key` and `value` [rows, kv heads, head size] in the caches
    [slots, context, kv heads, head size] and attends with `query` [rows, heads, head size].

    `slots` and `lengths` (including the new token) are [rows] int32. Returns the shape of `query`.
    """
    rows, heads, size = query.shape
    kv_heads = key_cache.shape[2]
    group = heads // kv_heads
    wanted_splits = triton.next_power_of_2(_MIN_PROGRAMS // (rows * kv_heads))
    splits = min(_MAX_SPLITS, max(1, wanted_splits))
    out = torch.empty((rows, heads, size), device=query.device, dtype=query.dtype)
    part_maxima = part_sums = parts = out  # unused by a single split
    if splits > 1:
        part_maxima = torch.empty((rows, heads, splits), device=query.device, dtype=torch.float32)
        part_sums = torch.empty_like(part_maxima)
        parts = torch.empty((rows, heads, splits, size), device=query.device, dtype=torch.float32)
    padded_size = triton.next_power_of_2(size)
    grid: Any = (rows, kv_heads, splits)
    _decode[grid](
        query, key, value, key_cache, value_cache, slots, lengths,
        out, part_maxima, part_sums, parts, scale, window, softcap,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1),
        value.stride(0), value.stride(1),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2),
        GROUP=group, PADDED_GROUP=max(16, triton.next_power_of_2(group)),
        SIZE=size, PADDED_SIZE=padded_size,
        BLOCK=_BLOCK if padded_size <= 128 else _BLOCK // 2,
        SPLITS=splits, SOFTCAP=softcap > 0, WINDOW=window > 0,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _combine[(rows * heads,)](
            part_maxima, part_sums, parts, out,
            SIZE=size, PADDED_SIZE=padded_size, SPLITS=splits, num_warps=4,
        )  # fmt: skip
    return out


def prefill(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    step: Step,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Chunks of prompts: `query` [tokens, heads, head size], split by `step.chunk_starts`. Each
    token attends to its slot up to its own position. Raises NotImplementedError for a soft cap.

    torch.nn.attention.varlen makes the same call in torch 2.13; in 2.11 it lacks `seqused_k`.
    """
    if softcap:
        raise NotImplementedError("torch's flash attention has no soft cap")
    # The cache is one long row of keys to it, in which a slot begins at slot * context.
    key_starts = torch.cat((step.slots, step.slots[-1:])) * key_cache.shape[1]
    out: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key_cache.view(-1, *key_cache.shape[2:]),
        value_cache.view(-1, *value_cache.shape[2:]),
        step.chunk_starts,
        key_starts,
        step.max_chunk_length,
        key_cache.shape[1],
        0.0,  # dropout
        True,  # causal
        False,  # no debug mask
        scale=scale,
        window_size_left=window - 1 if window else -1,
        window_size_right=0,
        seqused_k=step.lengths,
    )[0]
    return out.contiguous()  # it has the layout of `query`
