"""The decoding kernels of `triton_attention`, which says what their arguments are, and what the
kernels of other files have in common with them.

Flash attention: Dao, 2023, https://arxiv.org/abs/2307.08691 - scores are computed tile by tile with
a running maximum and sum. Flash decoding: Dao et al., 2023,
https://pytorch.org/blog/flash-decoding/ - the keys of a sequence are split into parts, each with
its own softmax, and the parts are combined by their maxima.

What differs between steps is not specialized: Triton would compile again for 1 and for 16 of it.
"""

import math

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(math.log2(math.e))  # scores become powers of two
# Below any score and finite, as a maximum of -inf would make NaN of keys that are all hidden.
_LOWEST = tl.constexpr(-1e15)


@triton.jit
def wait_if_early(PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Comes before all else in a kernel; see `dependent_launch`."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _blocks(table, token, begin, end, PAGE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The blocks that `token` of a sequence are in, as far as they are within [begin, end). Read
    an iteration before they are used, or Triton would fetch one iteration of keys less in advance.
    """
    inside = (token >= begin) & (token < end)
    return tl.load(table + token // PAGE, mask=inside, other=0)


@triton.jit
def _offset(block, token, cache_block, cache_token, PAGE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where `token` of `block` is in the cache, in elements: they may be more than 2**31."""
    return block.to(tl.int64) * cache_block + token % PAGE * cache_token


@triton.jit
def _capped(score, scale, softcap):  # type: ignore[no-untyped-def]
    """softcap * tanh(score * scale / softcap)"""
    return softcap * (2 * tl.sigmoid(2 * score * scale / softcap) - 1)


@triton.jit
def _add_keys(  # type: ignore[no-untyped-def]
    q, keys, values, offset, mask, visible, maximum, weight_sum, weighted,
    scale, softcap, to_log2,
    SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A step of the online softmax: keys at `offset` where `mask`, seen where `visible`."""
    dims = tl.arange(0, PADDED_SIZE)
    place = offset[:, None] + dims[None, :]
    loaded = (dims < SIZE)[None, :]
    if MASKED:
        loaded = loaded & mask[:, None]
    k = tl.load(keys + place, mask=loaded, other=0.0).to(q.dtype)
    score = tl.dot(q, tl.trans(k), input_precision="ieee")
    if SOFTCAP:
        score = _capped(score, scale, softcap)
    if MASKED:
        score = tl.where(visible, score, float("-inf"))
    new_maximum = tl.maximum(maximum, tl.max(score, 1) * to_log2)
    weight = tl.exp2(score * to_log2 - new_maximum[:, None])
    rescale = tl.exp2(maximum - new_maximum)
    v = tl.load(values + place, mask=loaded, other=0.0).to(q.dtype)
    weighted = tl.dot(weight.to(v.dtype), v, weighted * rescale[:, None], input_precision="ieee")
    weight_sum = weight_sum * rescale + tl.sum(weight, 1)
    return new_maximum, weight_sum, weighted


@triton.jit
def _first_visible(position, window, WINDOW: tl.constexpr, CHUNKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The oldest token that the one at `position` sees: older ones may be gone."""
    first = position * 0
    if CHUNKED:
        first = position // window * window
    elif WINDOW:
        first = tl.maximum(0, position - window + 1)
    return first


@triton.jit
def _add_part(  # type: ignore[no-untyped-def]
    place, part_maxima, part_sums, parts, mask, maximum, weight_sum, weighted,
    SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr,
):  # fmt: skip
    """Adds keys of which another kernel has made a part."""
    dims = tl.arange(0, PADDED_SIZE)
    part_maximum = tl.load(part_maxima + place, mask=mask, other=_LOWEST)
    part_sum = tl.load(part_sums + place, mask=mask, other=0.0)
    part = tl.load(
        parts + place[:, None] * SIZE + dims[None, :],
        mask=mask[:, None] & (dims < SIZE)[None, :],
        other=0.0,
    )
    new_maximum = tl.maximum(maximum, part_maximum)
    rescale, weight = tl.exp2(maximum - new_maximum), tl.exp2(part_maximum - new_maximum)
    weight_sum = weight_sum * rescale + part_sum * weight
    weighted = weighted * rescale[:, None] + part * weight[:, None]
    return new_maximum, weight_sum, weighted


@triton.jit
def _parts(  # type: ignore[no-untyped-def]
    length, prefix, window, splits, max_parts,
    MAX_PART: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """How the cached keys of rows of `length` tokens, behind those of a shared `prefix`, are split:
    the first one that is read, the length of a part and the number of parts. It depends on nothing
    of the other rows. There is no prefix where there is a window.
    """
    cached = tl.maximum(length - 1, 0)  # the newest token is not in the cache yet
    first = _first_visible(cached, window, WINDOW, CHUNKED) // BLOCK * BLOCK + prefix
    keys = cached - first
    part = tl.minimum(tl.cdiv(keys, splits), MAX_PART)
    part = tl.maximum(part, tl.cdiv(keys, max_parts))
    part = tl.maximum(tl.cdiv(part, BLOCK), 1) * BLOCK
    return first, part, tl.maximum(tl.cdiv(keys, part), 1)


@triton.jit
def _find_extra_part(  # type: ignore[no-untyped-def]
    target, lengths, prefix_lengths, rows_count, window, splits, max_parts,
    MAX_PART: tl.constexpr, BLOCK: tl.constexpr, PREFIX: tl.constexpr,
    WINDOW: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """The row and part that is number `target` of all parts but the first of each row; and how
    many of them there are.
    """
    row, before, total = 0, 0, 0
    for start in range(0, rows_count, 256):
        index = start + tl.arange(0, 256)
        inside = index < rows_count
        length = tl.load(lengths + index, mask=inside, other=0)
        prefix = 0
        if PREFIX:
            prefix = tl.load(prefix_lengths + index, mask=inside, other=0)
        _, _, parts = _parts(
            length, prefix, window, splits, max_parts, MAX_PART, BLOCK, WINDOW, CHUNKED
        )
        extra = parts - 1
        passed = inside & (total + tl.cumsum(extra, 0) <= target)
        row += tl.sum(passed.to(tl.int32), 0)
        before += tl.sum(tl.where(passed, extra, 0), 0)
        total += tl.sum(extra, 0)
    return row, target - before + 1, total


@triton.jit(
    do_not_specialize=[
        "rows_count", "splits", "max_parts", "prefix_splits", "prefix_max_parts", "window",
    ]
)  # fmt: skip
def decode_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915 - one kernel
    query, key, value, key_cache, value_cache, block_tables, rows, lengths, sinks,
    out, part_maxima, part_sums, parts,
    prefix_lengths, prefix_maxima, prefix_sums, prefix_parts,
    rows_count, splits, max_parts, prefix_splits, prefix_max_parts, scale, softcap, to_log2, window,
    query_row, query_head, key_row, key_head, value_row, value_head,
    cache_block, cache_token, cache_head, table_row,
    GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr, SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, MAX_PART: tl.constexpr,
    PREFIX: tl.constexpr, PREFIX_MAX_PART: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, CHUNKED: tl.constexpr, SINKS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    wait_if_early(PDL)
    # Programs [0, rows) compute the first part of their row. The others share what parts there are
    # besides, mostly none.
    head, program = tl.program_id(0), tl.program_id(1)
    extra_programs = tl.num_programs(1) - rows_count
    group = tl.arange(0, PADDED_GROUP)  # query heads that share a key head; tl.dot needs 16
    dims = tl.arange(0, PADDED_SIZE)
    valid = (group < GROUP)[:, None] & (dims < SIZE)[None, :]
    heads = tl.num_programs(0) * GROUP
    query_heads = head * GROUP + group
    if program < rows_count:
        unused = tl.load(lengths + program) == 0
        end_item = program + 1 - unused.to(tl.int32)
        place = (program * heads + query_heads)[:, None] * SIZE + dims[None, :]
        tl.store(out + place, tl.zeros_like(place).to(out.dtype.element_ty), mask=valid & unused)
    else:
        _, _, total = _find_extra_part(
            0, lengths, prefix_lengths, rows_count, window, splits, max_parts,
            MAX_PART, BLOCK, PREFIX, WINDOW, CHUNKED,
        )  # fmt: skip
        end_item = rows_count + total
    for item in range(program, end_item, tl.maximum(extra_programs, 1)):
        row, part = item, 0
        if item >= rows_count:
            row, part, _ = _find_extra_part(
                item - rows_count, lengths, prefix_lengths, rows_count, window, splits, max_parts,
                MAX_PART, BLOCK, PREFIX, WINDOW, CHUNKED,
            )  # fmt: skip
        length, sequence = tl.load(lengths + row), tl.load(rows + row).to(tl.int64)
        prefix = 0
        if PREFIX:
            prefix = tl.load(prefix_lengths + row)
        first, part_length, part_count = _parts(
            length, prefix, window, splits, max_parts, MAX_PART, BLOCK, WINDOW, CHUNKED
        )
        cached = length - 1  # tokens in the cache; the newest one is in registers below
        begin = first + part * part_length
        end = tl.minimum(cached, begin + part_length)
        table = block_tables + sequence * table_row
        q = tl.load(
            query + row * query_row + query_heads[:, None] * query_head + dims[None, :],
            mask=valid,
            other=0.0,
        )
        maximum = tl.full([PADDED_GROUP], _LOWEST, tl.float32)
        weight_sum = tl.zeros([PADDED_GROUP], tl.float32)
        weighted = tl.zeros([PADDED_GROUP, PADDED_SIZE], tl.float32)
        if SINKS:  # noqa: SIM102 - the compiler's if, then the kernel's
            if part == 0:
                sink = tl.load(sinks + query_heads, mask=group < GROUP, other=0.0)
                maximum = sink.to(tl.float32) * _LOG2_E
                weight_sum += 1.0
        seen_from = begin
        if WINDOW:
            seen_from = tl.maximum(begin, _first_visible(cached, window, WINDOW, CHUNKED))
        block = _blocks(table, begin + tl.arange(0, BLOCK), seen_from, end, PAGE)
        for start in range(begin, end, BLOCK):
            token = start + tl.arange(0, BLOCK)
            visible = (token >= seen_from) & (token < end)
            offset = _offset(block, token, cache_block, cache_token, PAGE)
            block = _blocks(table, token + BLOCK, seen_from, end, PAGE)
            maximum, weight_sum, weighted = _add_keys(
                q, key_cache + head * cache_head, value_cache + head * cache_head,
                offset, visible, visible[None, :], maximum, weight_sum, weighted,
                scale, softcap, to_log2, SIZE, PADDED_SIZE, SOFTCAP, True,
            )  # fmt: skip
        index = row * heads + query_heads
        if PREFIX:  # noqa: SIM102 - the compiler's if, then the kernel's
            if (part == 0) & (prefix > 0):
                _, _, prefix_count = _parts(
                    prefix + 1, 0, 0, prefix_splits, prefix_max_parts,
                    PREFIX_MAX_PART, BLOCK, False, False,
                )  # fmt: skip
                for prefix_part in range(0, prefix_count):
                    place = index * prefix_max_parts + prefix_part
                    maximum, weight_sum, weighted = _add_part(
                        place, prefix_maxima, prefix_sums, prefix_parts, group < GROUP,
                        maximum, weight_sum, weighted, SIZE, PADDED_SIZE,
                    )  # fmt: skip
        if part == 0:  # the newest token: store it, and attend to it
            valid_dims = dims < SIZE
            new_key = tl.load(
                key + row * key_row + head * key_head + dims, mask=valid_dims, other=0.0
            )
            new_value = tl.load(
                value + row * value_row + head * value_head + dims, mask=valid_dims, other=0.0
            )
            new_block = tl.load(table + cached // PAGE)
            place = _offset(new_block, cached, cache_block, cache_token, PAGE)
            place += head * cache_head + dims
            tl.store(key_cache + place, new_key.to(key_cache.dtype.element_ty), mask=valid_dims)
            tl.store(
                value_cache + place, new_value.to(value_cache.dtype.element_ty), mask=valid_dims
            )
            score = tl.sum(q.to(tl.float32) * new_key.to(tl.float32)[None, :], 1)
            if SOFTCAP:
                score = _capped(score, scale, softcap)
            new_maximum = tl.maximum(maximum, score * to_log2)
            rescale = tl.exp2(maximum - new_maximum)
            weight = tl.exp2(score * to_log2 - new_maximum)
            weighted = (
                weighted * rescale[:, None] + weight[:, None] * new_value.to(tl.float32)[None, :]
            )
            weight_sum = weight_sum * rescale + weight
            maximum = new_maximum
        if part_count == 1:
            weighted = weighted / weight_sum[:, None]
            tl.store(
                out + index[:, None] * SIZE + dims[None, :],
                weighted.to(out.dtype.element_ty),
                mask=valid,
            )
        else:
            index = index * max_parts + part
            tl.store(part_maxima + index, maximum, mask=group < GROUP)
            tl.store(part_sums + index, weight_sum, mask=group < GROUP)
            tl.store(parts + index[:, None] * SIZE + dims[None, :], weighted, mask=valid)


@triton.jit(do_not_specialize=["splits", "max_parts", "window"])
def combine_kernel(  # type: ignore[no-untyped-def]
    part_maxima, part_sums, parts, lengths, prefix_lengths, out, window, splits, max_parts,
    SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr, HEADS: tl.constexpr, COMBINED: tl.constexpr,
    BLOCK: tl.constexpr, MAX_PART: tl.constexpr, PREFIX: tl.constexpr,
    WINDOW: tl.constexpr, CHUNKED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_if_early(PDL)
    row = tl.program_id(1)
    length = tl.load(lengths + row)
    prefix = 0
    if PREFIX:
        prefix = tl.load(prefix_lengths + row)
    _, _, part_count = _parts(
        length, prefix, window, splits, max_parts, MAX_PART, BLOCK, WINDOW, CHUNKED
    )
    if part_count == 1:
        return
    dims = tl.arange(0, PADDED_SIZE)
    first_head = (row * tl.num_programs(0) + tl.program_id(0)) * HEADS
    for index in range(first_head, first_head + HEADS):
        maxima = tl.full([COMBINED], _LOWEST, tl.float32)
        sums = tl.zeros([COMBINED], tl.float32)
        weighted = tl.zeros([COMBINED, PADDED_SIZE], tl.float32)
        for start in range(0, part_count, COMBINED):  # each of COMBINED lanes combines some parts
            part = start + tl.arange(0, COMBINED)
            inside = part < part_count
            place = index * max_parts + part
            maximum = tl.load(part_maxima + place, mask=inside, other=_LOWEST)
            new_maxima = tl.maximum(maxima, maximum)
            rescale, weight = tl.exp2(maxima - new_maxima), tl.exp2(maximum - new_maxima)
            part_sum = tl.load(part_sums + place, mask=inside, other=0.0)
            values = tl.load(
                parts + place[:, None] * SIZE + dims[None, :],
                mask=inside[:, None] & (dims < SIZE)[None, :],
                other=0.0,
            )
            sums = sums * rescale + part_sum * weight
            weighted = weighted * rescale[:, None] + values * weight[:, None]
            maxima = new_maxima
        weight = tl.exp2(maxima - tl.max(maxima, 0))
        combined = tl.sum(weighted * weight[:, None], 0) / tl.sum(sums * weight, 0)
        tl.store(out + index * SIZE + dims, combined.to(out.dtype.element_ty), mask=dims < SIZE)


@triton.jit
def store_kernel(  # type: ignore[no-untyped-def]
    key, value, key_cache, value_cache, slot_mapping, key_row, key_head, value_row, value_head,
    KV_HEADS: tl.constexpr, PADDED_HEADS: tl.constexpr,
    SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A token's key, or its value: one launch for both, and none of torch's index arithmetic."""
    wait_if_early(PDL)
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(slot_mapping + token)
    heads, dims = tl.arange(0, PADDED_HEADS)[:, None], tl.arange(0, PADDED_SIZE)[None, :]
    inside = (heads < KV_HEADS) & (dims < SIZE)
    target = (place * KV_HEADS + heads) * SIZE + dims
    if tl.program_id(1) == 0:
        numbers = tl.load(key + token * key_row + heads * key_head + dims, mask=inside)
        tl.store(key_cache + target, numbers, mask=inside)
    else:
        numbers = tl.load(value + token * value_row + heads * value_head + dims, mask=inside)
        tl.store(value_cache + target, numbers, mask=inside)
