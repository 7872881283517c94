"""Attention over a paged KV cache in plain torch: what a CPU computes, float32 on a GPU, and what
the kernels are compared with.
"""

import torch
from torch.nn import functional

from worker.engines.transformers.model.window import Window


def attend(
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
) -> torch.Tensor:
    """Attends with `query` [tokens, heads, head size], whose keys and values are in the caches
    [blocks, block size, kv heads, head size] already. Returns the shape of `query`.

    `block_tables` [sequences, blocks of each]: position p of sequence s is in block
    `block_tables[s, p // block size]`. Chunk c is the tokens `chunk_starts[c]:chunk_starts[c + 1]`,
    the newest of the `lengths[c]` tokens of sequence `rows[c]`; a decoding row is a chunk of one
    token. A chunk of length 0 is unused. Tokens of no chunk give zeros.

    `window`: how many of the newest tokens a token sees; 0: all. `chunked`: it sees those from the
    last multiple of `window` on instead. `softcap`: 0: none. `sinks` [heads]: a logit that takes
    part in the softmax and has no value.
    """
    out = query.new_zeros(query.shape)
    starts = chunk_starts.tolist()
    for chunk, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
        begin, end = starts[chunk], starts[chunk + 1]
        if begin == end or length == 0:
            continue
        position = length - (end - begin)  # of the first query
        first = Window(window, chunked).first_visible(position)  # older keys may be gone
        keys = _gather(key_cache, block_tables[row], first, length).to(query.dtype)
        values = _gather(value_cache, block_tables[row], first, length).to(query.dtype)
        visible = visible_keys(position, first, length, window, chunked, query.device)
        q = query[begin:end].transpose(0, 1)
        if softcap or sinks is not None:
            attended = attend_explicitly(q, keys, values, visible, scale, softcap, sinks)
        else:
            attended = functional.scaled_dot_product_attention(
                q[None], keys[None], values[None], attn_mask=visible, scale=scale, enable_gqa=True
            )[0]
        out[begin:end] = attended.transpose(0, 1)
    return out


def _gather(cache: torch.Tensor, table: torch.Tensor, first: int, length: int) -> torch.Tensor:
    """[kv heads, length - first, head size]: the tokens `first:length` of one sequence."""
    block_size = cache.shape[1]
    first_block = first // block_size
    blocks = table[first_block : -(-length // block_size)].long()
    begin = first_block * block_size
    return cache[blocks].flatten(0, 1)[first - begin : length - begin].transpose(0, 1)


def visible_keys(
    start: int, first: int, end: int, window: int, chunked: bool, device: torch.device
) -> torch.Tensor:
    """[queries, keys] True where the key at `first:end` is seen by the query at `start:end`."""
    query_positions = torch.arange(start, end, device=device)[:, None]
    key_positions = torch.arange(first, end, device=device)[None, :]
    visible = key_positions <= query_positions
    if window and chunked:
        visible &= key_positions >= query_positions // window * window
    elif window:
        visible &= key_positions > query_positions - window
    return visible


def attend_explicitly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """With a softmax written out, which SDPA's cannot be told to cap or to add to. All are
    [heads or kv heads, tokens, head size].
    """
    group = query.shape[0] // keys.shape[0]
    scores = (query @ keys.repeat_interleave(group, 0).transpose(-1, -2)).float() * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        sink_scores = sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat((scores, sink_scores), -1)
    weights = torch.softmax(scores, -1)[..., : keys.shape[1]].to(query.dtype)
    return weights @ values.repeat_interleave(group, 0)
