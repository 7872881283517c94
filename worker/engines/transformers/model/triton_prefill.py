"""The kernel that computes prompts, for `triton_attention`, which says what its arguments are.

Flash attention: see `triton_kernels`.
"""

import triton
import triton.language as tl

from worker.engines.transformers.model.triton_kernels import (
    _LOG2_E,
    _LOWEST,
    _add_keys,
    _blocks,
    _first_visible,
    _offset,
)


@triton.jit
def _find_chunk(tile, chunk_starts, chunks, TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The chunk that `tile` belongs to; -1: none. Chunk c begins with tile
    `chunk_starts[c] // TOKENS + c`, so it has at least as many as it needs, and the last one all
    that are left.
    """
    chunk = -1
    for start in range(0, chunks, 64):
        index = start + tl.arange(0, 64)
        inside = index < chunks
        first_tile = tl.load(chunk_starts + index, mask=inside, other=0) // TOKENS + index
        chunk += tl.sum((inside & (first_tile <= tile)).to(tl.int32), 0)
    return chunk


@triton.jit(do_not_specialize=["tokens", "chunks", "window"])
def prefill_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, value_cache, block_tables, rows, lengths, chunk_starts, sinks, out,
    tokens, chunks, scale, softcap, to_log2, window,
    query_token, query_head, cache_block, cache_token, cache_head, table_row,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr, PAGE: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, CHUNKED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = QUERIES // GROUP
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # a chunk's last tiles take longest: first
    head = tl.program_id(1)
    chunk = _find_chunk(tile, chunk_starts, chunks, TOKENS)
    if chunk < 0:
        return
    chunk_begin, chunk_end = tl.load(chunk_starts + chunk), tl.load(chunk_starts + chunk + 1)
    first_token = chunk_begin + (tile - chunk_begin // TOKENS - chunk) * TOKENS
    written_end = chunk_end
    if chunk == chunks - 1:  # its tiles also write zeros for the tokens that belong to no chunk
        written_end = tokens
    if first_token >= written_end:
        return

    index = tl.arange(0, QUERIES)
    token = first_token + index // GROUP
    query_heads = head * GROUP + index % GROUP
    in_tile = index < TOKENS * GROUP
    computed = in_tile & (token < chunk_end)
    dims = tl.arange(0, PADDED_SIZE)
    place = token.to(tl.int64) * query_token + query_heads.to(tl.int64) * query_head
    q = tl.load(
        query + place[:, None] + dims[None, :],
        mask=computed[:, None] & (dims < SIZE)[None, :],
        other=0.0,
    )
    length = tl.load(lengths + chunk)
    position = length - chunk_end + token
    first_position = length - chunk_end + first_token
    keys_end = tl.minimum(first_position + TOKENS, length)
    if first_token >= chunk_end:
        keys_end = 0
    table = block_tables + tl.load(rows + chunk).to(tl.int64) * table_row
    keys, values = key_cache + head * cache_head, value_cache + head * cache_head

    maximum = tl.full([QUERIES], _LOWEST, tl.float32)
    weight_sum = tl.zeros([QUERIES], tl.float32)
    weighted = tl.zeros([QUERIES, PADDED_SIZE], tl.float32)
    if SINKS:
        sink = tl.load(sinks + query_heads, mask=in_tile, other=0.0).to(tl.float32)
        maximum = sink * _LOG2_E
        weight_sum += 1.0
    seen_from = 0
    if WINDOW:
        seen_from = _first_visible(first_position, window, WINDOW, CHUNKED)
    masked_begin = seen_from // KEYS * KEYS
    block = _blocks(table, masked_begin + tl.arange(0, KEYS), seen_from, keys_end, PAGE)
    if not WINDOW:
        masked_begin = tl.minimum((first_position + 1) // KEYS * KEYS, keys_end)
        for start in range(0, masked_begin, KEYS):  # all of them see these keys
            key_token = start + tl.arange(0, KEYS)
            offset = _offset(block, key_token, cache_block, cache_token, PAGE)
            block = _blocks(table, key_token + KEYS, seen_from, keys_end, PAGE)
            maximum, weight_sum, weighted = _add_keys(
                q, keys, values, offset, None, None, maximum, weight_sum, weighted,
                scale, softcap, to_log2, SIZE, PADDED_SIZE, SOFTCAP, False,
            )  # fmt: skip
    for start in range(masked_begin, keys_end, KEYS):
        key_token = start + tl.arange(0, KEYS)
        mask = (key_token >= seen_from) & (key_token < keys_end)
        visible = mask[None, :] & (key_token[None, :] <= position[:, None])
        if WINDOW:
            oldest = _first_visible(position, window, WINDOW, CHUNKED)
            visible = visible & (key_token[None, :] >= oldest[:, None])
        offset = _offset(block, key_token, cache_block, cache_token, PAGE)
        block = _blocks(table, key_token + KEYS, seen_from, keys_end, PAGE)
        maximum, weight_sum, weighted = _add_keys(
            q, keys, values, offset, mask, visible, maximum, weight_sum, weighted,
            scale, softcap, to_log2, SIZE, PADDED_SIZE, SOFTCAP, True,
        )  # fmt: skip

    weight_sum = tl.where(computed, weight_sum, 1.0)
    weighted = tl.where(computed[:, None], weighted / weight_sum[:, None], 0.0)
    heads = tl.num_programs(1) * GROUP
    place = (token.to(tl.int64) * heads + query_heads) * SIZE
    tl.store(
        out + place[:, None] + dims[None, :],
        weighted.to(out.dtype.element_ty),
        mask=(in_tile & (token < written_end))[:, None] & (dims < SIZE)[None, :],
    )
