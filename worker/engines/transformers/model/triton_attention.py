"""Attention on a GPU, over slots of any length. Decoding is Triton's, so that long contexts are shared by many
multiprocessors and short ones cost their own bytes only; prompts go through the flash attention that torch brings.

Flash decoding: Dao et al., 2023, https://pytorch.org/blog/flash-decoding/ - a sequence's keys are split, each part has
its own softmax, and the parts are added up by their largest score.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from worker.engines.transformers.model.attention import Step

_BLOCK = 64  # keys read at a time: the best of 32, 64 and 128 on an H200 at every batch size tried
_MOST_SPLITS = 16
_LEAST_PROGRAMS = 256  # about twice an H100's multiprocessors: more would not hide more latency


@triton.jit
def _decode(  # type: ignore[no-untyped-def]  # noqa: PLR0915 - one kernel, read from top to bottom
    query, key, value, keys, values, slots, lengths, out, maxima, sums, parts, scale, window, softcap,
    query_row, query_head, key_row, key_head, value_row, value_head, cache_slot, cache_token, cache_head,
    GROUP: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    first = 0
    if WINDOWED:
        first = tl.maximum(0, length - window) // BLOCK * BLOCK
    before = length - 1  # tokens in the cache; the newest one is in registers below
    share = tl.cdiv(tl.cdiv(before - first, SPLITS), BLOCK) * BLOCK
    begin = first + split * share
    end = tl.minimum(before, begin + share)

    mine = tl.arange(
        0, PADDED
    )  # the query heads that share this head's keys; tl.dot wants 16 of them
    across = tl.arange(0, WIDTH)
    real = (mine < GROUP)[:, None] & (across < SIZE)[None, :]
    q = tl.load(
        query + row * query_row + (head * GROUP + mine)[:, None] * query_head + across[None, :],
        mask=real,
        other=0.0,
    )
    base = tl.load(slots + row).to(tl.int64) * cache_slot + head * cache_head
    highest = tl.full([PADDED], float("-inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    answer = tl.zeros([PADDED, WIDTH], tl.float32)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        held = token < end
        spot = base + token * cache_token
        k = tl.load(
            keys + spot[None, :] + across[:, None],
            mask=held[None, :] & (across < SIZE)[:, None],
            other=0.0,
        )
        score = tl.dot(q, k) * scale
        if CAPPED:
            score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
        seen = held
        if WINDOWED:
            seen = seen & (token >= length - window)
        score = tl.where(seen[None, :], score, float("-inf"))
        newest = tl.maximum(highest, tl.max(score, 1))
        finite = tl.where(
            newest == float("-inf"), 0.0, newest
        )  # a block that the window hides altogether
        fade = tl.exp(highest - finite)
        weight = tl.exp(score - finite[:, None])
        v = tl.load(
            values + spot[:, None] + across[None, :],
            mask=held[:, None] & (across < SIZE)[None, :],
            other=0.0,
        )
        answer = answer * fade[:, None] + tl.dot(weight.to(v.dtype), v)
        total = total * fade + tl.sum(weight, 1)
        highest = newest
    if split == 0:  # the newest token, written on the way
        wide = across < SIZE
        spot = base + before * cache_token + across
        new_key = tl.load(key + row * key_row + head * key_head + across, mask=wide, other=0.0)
        new_value = tl.load(
            value + row * value_row + head * value_head + across, mask=wide, other=0.0
        )
        tl.store(keys + spot, new_key, mask=wide)
        tl.store(values + spot, new_value, mask=wide)
        single = tl.sum(q.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * scale
        if CAPPED:
            single = softcap * (2 * tl.sigmoid(2 * single / softcap) - 1)
        newest = tl.maximum(highest, single)
        fade = tl.exp(highest - newest)
        weight = tl.exp(single - newest)
        answer = answer * fade[:, None] + weight[:, None] * new_value.to(tl.float32)[None, :]
        total = total * fade + weight
        highest = newest
    heads = tl.num_programs(1) * GROUP
    place = row * heads + head * GROUP + mine
    if SPLITS == 1:
        answer = answer / total[:, None]
        tl.store(
            out + place[:, None] * SIZE + across[None, :],
            answer.to(out.dtype.element_ty),
            mask=real,
        )
    else:
        place = place * SPLITS + split
        tl.store(maxima + place, highest, mask=mine < GROUP)
        tl.store(sums + place, total, mask=mine < GROUP)
        tl.store(parts + place[:, None] * SIZE + across[None, :], answer, mask=real)


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    maxima, sums, parts, out, SIZE: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    split = place * SPLITS + tl.arange(0, SPLITS)
    across = tl.arange(0, WIDTH)
    highest = tl.load(maxima + split)
    weight = tl.exp(highest - tl.max(highest, 0))
    part = tl.load(
        parts + split[:, None] * SIZE + across[None, :], mask=(across < SIZE)[None, :], other=0.0
    )
    answer = tl.sum(part * weight[:, None], 0) / tl.sum(tl.load(sums + split) * weight, 0)
    tl.store(out + place * SIZE + across, answer.to(out.dtype.element_ty), mask=across < SIZE)


def decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """One token a slot: `query` [rows, heads, size] over `keys`, `values` [slots, context, kv heads, size], where its
    own `key` and `value` [rows, kv heads, size] are put; `slots` and `lengths` (with it) [rows] int32. Returns [rows,
    heads, size].
    """
    rows, heads, size = query.shape
    groups = keys.shape[2]
    splits = min(_MOST_SPLITS, max(1, triton.next_power_of_2(_LEAST_PROGRAMS // (rows * groups))))
    out = torch.empty((rows, heads, size), device=query.device, dtype=query.dtype)
    maxima = sums = parts = out
    if splits > 1:
        maxima = torch.empty((rows, heads, splits), device=query.device, dtype=torch.float32)
        sums = torch.empty_like(maxima)
        parts = torch.empty((rows, heads, splits, size), device=query.device, dtype=torch.float32)
    width = triton.next_power_of_2(size)
    grid: Any = (rows, groups, splits)
    _decode[grid](
        query, key, value, keys, values, slots, lengths, out, maxima, sums, parts, scale, window, softcap,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        keys.stride(0), keys.stride(1), keys.stride(2),
        GROUP=heads // groups, PADDED=max(16, triton.next_power_of_2(heads // groups)), SIZE=size, WIDTH=width,
        BLOCK=_BLOCK if width <= 128 else _BLOCK // 2, SPLITS=splits, CAPPED=softcap > 0, WINDOWED=window > 0,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _combine[(rows * heads,)](
            maxima, sums, parts, out, SIZE=size, WIDTH=width, SPLITS=splits, num_warps=4
        )
    return out


def prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Pieces of prompts: `query` [tokens, heads, size] of `step.starts`; each piece sees its slot up to its own
    position.

    The call below is what torch.nn.attention.varlen makes in torch 2.13; older ones (2.11) have the call but not yet
    the argument `seqused_k` there. A slot's keys begin at slot * context of one long row.
    """
    if softcap:
        raise NotImplementedError("torch's flash attention has no soft cap")
    begins = torch.cat((step.slots, step.slots[-1:])) * keys.shape[1]
    out: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query,
        keys.view(-1, *keys.shape[2:]),
        values.view(-1, *values.shape[2:]),
        step.starts,
        begins,
        step.longest,
        keys.shape[1],
        0.0,
        True,
        False,
        scale=scale,
        window_size_left=window - 1 if window else -1,
        window_size_right=0,
        seqused_k=step.lengths,
    )[0]
    return out.contiguous()  # it has the layout of `query`
