"""Attention over the KV cache: each token of a step writes its key and value into its sequence's
blocks, or its row, and attends to what they hold.

transformers calls `attention_forward` where it would call SDPA (AttentionInterface), so any
architecture that accepts an attention function works; its projections, norms, rotary embeddings and
windows stay the library's business. A step packs the tokens of many sequences into one row
[1, tokens], each at its own position, so nothing is padded:

    decoding    one token per sequence:    a  b  c  d
    prefill     chunks of prompts:         a a a a a  b b b  c c

`attend` is opaque to torch.compile; it takes the step from `current_step`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface

from worker.engines.transformers.model import flash_attention, paged_attention
from worker.engines.transformers.model.float8 import FLOAT8, round_to_float8
from worker.engines.transformers.model.step import PrefillChunk, Step
from worker.engines.transformers.model.window import Window, layer_window

NAME = "canopy_slots"  # of the attention function, in transformers' registry

_local = threading.local()

_PagedCaches = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # of keys, values; block tables


class Bounds(NamedTuple):
    """What an attention layer does besides attending; see `attend`."""

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: torch.Tensor | None = None
    chunked: bool = False


@contextmanager
def use_step(step: Step) -> Iterator[None]:
    """`attend` computes `step` in this thread meanwhile."""
    _local.step = step
    try:
        yield
    finally:
        del _local.step


def current_step() -> Step | None:
    """The step in progress in this thread; None if the library computes without a runner."""
    return getattr(_local, "step", None)


def register() -> None:
    """Registers `NAME` with transformers, which then builds no mask for it."""
    AttentionInterface.register(NAME, attention_forward)


def attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Called by transformers: `query` [1, heads, tokens, head size], `key` and `value`
    [1, kv heads, tokens, head size], where the head size of values may be another one. `s_aux`
    [heads]: attention sinks. Returns [1, tokens, heads, head size of values].
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = layer_window(module, sliding_window)
    value_size = value.shape[-1]
    query, key, value = (
        _padded(heads, module.key_cache.shape[-1]) for heads in (query, key, value)
    )
    dtype, scaled = query.dtype, module.key_cache.dtype == FLOAT8
    if scaled:  # by powers of two, and compiled together with the rotary embeddings
        query = _as_float16(query * module.key_scale)
        key = round_to_float8(key / module.key_scale)
        value = round_to_float8(value / module.value_scale)
    # The operation's dispatch costs a CPU more than the attention of a short row.
    operation = _attend_op if query.is_cuda or torch.compiler.is_compiling() else attend
    out = operation(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        module.key_cache,
        module.value_cache,
        module.block_group,
        s_aux,
        scale,
        window.tokens,
        window.chunked,
        softcap or 0.0,
    )
    if scaled:
        out = out.to(dtype) * module.value_scale
    return out[None, ..., :value_size], None


def _as_float16(query: torch.Tensor) -> torch.Tensor:
    """A GPU converts float8 to float16 in one instruction, to bfloat16 in many: so float8 keys are
    multiplied in float16, which holds them exactly.
    """
    largest = torch.finfo(torch.float16).max
    return query.clamp(-largest, largest).to(torch.float16)


def _padded(heads: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros behind each head: they add nothing to a score, and are cut off an output."""
    if heads.shape[-1] == size:
        return heads
    return functional.pad(heads, (0, size - heads.shape[-1]))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_group: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    window: int,
    chunked: bool,
    softcap: float,
) -> torch.Tensor:
    """Stores `key` and `value` [tokens, kv heads, head size] in the caches, whose dtype they have,
    see LocalModelRunner, then attends with `query` [tokens, heads, head size]. Returns its shape.

    `block_group`: of the layer, on the host; see `block_groups`. As a number it would have every
    group compiled by itself. `window`, `chunked`: see `layer_window`. `softcap`: 0: none. `sinks`
    [heads]: a logit that takes part in the softmax and has no value.
    """
    running: Step = _local.step
    step = running.on(query.device)
    bounds = Bounds(scale, window, softcap, sinks, chunked)
    if step.block_tables is None:
        _store(key_cache, value_cache, key, value, step.slot_mapping)
        return _attend_with_sdpa(query, key_cache, value_cache, step, bounds)
    group = int(block_group)
    slot_mapping = step.slot_mapping[group]
    caches = key_cache, value_cache, step.block_tables[query.device][group]
    rows = len(step.slots)
    if not query.is_cuda or query.dtype == torch.float32:
        _store(key_cache, value_cache, key, value, slot_mapping)
        return _attend_plainly(query, caches, step, bounds)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    with torch.cuda.device(query.device):  # Triton launches on the current device
        if step.chunk_starts is not None:
            if flash_attention.chosen():
                out.zero_()  # it writes nothing for padding
            _kernels().store(key, value, key_cache, value_cache, slot_mapping)
        if rows:  # it stores by itself
            _kernels().decode(
                out[:rows], query[:rows], key[:rows], value[:rows], *caches,
                step.slots, step.lengths, *bounds,
                longest=step.longest, prefixes=step.prefixes,
            )  # fmt: skip
        if step.chunk_starts is not None:  # over what unused rows have left
            _prefill(out, query, caches, step, bounds)
    return out


def _prefill(
    out: torch.Tensor, query: torch.Tensor, caches: _PagedCaches, step: Step, bounds: Bounds
) -> None:
    chunks = step.chunk_slots, step.chunk_lengths, step.chunk_starts
    plain = not (bounds.window or bounds.softcap or bounds.sinks is not None)
    if plain and flash_attention.chosen() and caches[0].dtype == query.dtype:
        flash_attention.prefill(out, query, *caches, *chunks, bounds.scale)
    else:
        _kernels().prefill(out, query, *caches, *chunks, *bounds)


_attend_op = torch.library.custom_op(
    "canopy::attend", attend, mutates_args=("key_cache", "value_cache")
)


@_attend_op.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_group: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    window: int,
    chunked: bool,
    softcap: float,
) -> torch.Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def _kernels() -> ModuleType:
    """Imported late: a machine without a GPU may lack Triton."""
    from worker.engines.transformers.model import triton_attention

    return triton_attention


def _store(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    if key_cache.dtype == FLOAT8:  # which torch cannot copy by index, but bytes
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)
        key, value = key.view(torch.uint8), value.view(torch.uint8)
    key_cache.view(-1, *key_cache.shape[2:]).index_copy_(0, slot_mapping, key)
    value_cache.view(-1, *value_cache.shape[2:]).index_copy_(0, slot_mapping, value)


def _attend_plainly(
    query: torch.Tensor,
    caches: _PagedCaches,
    step: Step,
    bounds: Bounds,
) -> torch.Tensor:
    """Over pages without kernels."""
    rows = len(step.slots)
    row_starts = torch.arange(rows + 1)
    attended = paged_attention.attend(
        query[:rows], *caches, step.slots, step.lengths, row_starts, **bounds._asdict()
    )
    if step.chunk_slots is None or step.chunk_lengths is None or step.chunk_starts is None:
        return attended
    out = paged_attention.attend(
        query,
        *caches,
        step.chunk_slots,
        step.chunk_lengths,
        step.chunk_starts,
        **bounds._asdict(),
    )
    used = int(step.chunk_starts[0])
    out[:used] = attended[:used]
    return out


def attends_rows(query: torch.Tensor, key_cache: torch.Tensor) -> bool:
    """Whether the present step only decodes, over rows of the cache: then `attend_rows` does."""
    step = current_step()
    if step is None or step.chunk_starts is not None or step.block_tables is not None:
        return False
    return query.shape[-1] == key_cache.shape[-1]


def attend_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, module: Any, bounds: Bounds
) -> torch.Tensor:
    """`attend` where `attends_rows`, without a call in between that takes as long as attending to a
    short row does.
    """
    step: Step = _local.step
    _store(module.key_cache, module.value_cache, key, value, step.slot_mapping)
    return _attend_with_sdpa(query, module.key_cache, module.value_cache, step, bounds)


def _attend_with_sdpa(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    step: Step,
    bounds: Bounds,
) -> torch.Tensor:
    """torch's own attention on views of the cache: prefill chunks one by one, decoding rows in
    blocks.
    """
    if step.chunk_starts is None and not bounds.softcap and not _window_hides(step, bounds.window):
        return _group_rows(query, key_cache, value_cache, step, bounds)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    first = 0
    for chunk in step.chunks:
        last = first + chunk.length
        begin = Window(bounds.window, bounds.chunked).first_visible(chunk.start)
        q = query[first:last].transpose(0, 1)
        k = key_cache[chunk.slot, begin : chunk.end].transpose(0, 1)
        v = value_cache[chunk.slot, begin : chunk.end].transpose(0, 1)
        attended = _attend_chunk(q, k, v, chunk, begin, bounds)
        out[first:last] = attended.transpose(0, 1)
        first = last
    return out


def _attend_chunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    chunk: PrefillChunk,
    begin: int,
    bounds: Bounds,
) -> torch.Tensor:
    """All are [heads or kv heads, tokens, head size]; the first key is that of token `begin`."""
    mask: torch.Tensor | None = None
    explicit = bounds.softcap > 0 or bounds.sinks is not None
    if explicit or chunk.length > 1:  # a single query sees all keys from `begin` on
        mask = paged_attention.visible_keys(
            chunk.start, begin, chunk.end, bounds.window, bounds.chunked, q.device
        )
    if explicit and mask is not None:
        return paged_attention.attend_explicitly(
            q, k, v, mask, bounds.scale, bounds.softcap, bounds.sinks
        )
    return functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, scale=bounds.scale, enable_gqa=True
    )[0]


def _window_hides(step: Step, window: int) -> bool:
    """Whether some token in the cache is outside the window of its row."""
    return window > 0 and any(chunk.end > window for chunk in step.chunks)


def _group_rows(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    step: Step,
    bounds: Bounds,
) -> torch.Tensor:
    """One token per row, in few calls: a call costs more than the arithmetic of a short row. The
    heads that share a key are its queries, so keys are not repeated for them.
    """
    tokens, heads, size = query.shape
    grouped = query.reshape(tokens, key_cache.shape[2], -1, size)
    out = torch.empty_like(grouped)
    for group in step.row_groups(key_cache.shape[1], query.dtype):
        slots = slice(group.first_slot, group.end_slot)
        whole = group.in_order and len(group.rows) == tokens
        if whole:
            q = grouped
        else:
            q = grouped.new_zeros(group.end_slot - group.first_slot, *grouped.shape[1:])
            q[group.offsets] = grouped[group.rows]
        k = key_cache[slots, : group.length].transpose(1, 2)
        v = value_cache[slots, : group.length].transpose(1, 2)
        if bounds.sinks is None:
            attended = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=group.mask, scale=bounds.scale
            )
        else:
            attended = _attend_with_sinks(q, k, v, group.mask, bounds.scale, bounds.sinks)
        if whole:
            return attended.reshape(tokens, heads, size)
        out[group.rows] = attended[group.offsets]
    return out.view(tokens, heads, size)


def _attend_with_sinks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    sinks: torch.Tensor,
) -> torch.Tensor:
    """SDPA has no sinks. `q` [slots, kv heads, heads of each, head size], `mask` as a RowGroup's,
    `sinks` [heads].
    """
    scores = (q @ k.transpose(-1, -2)).float() * scale + mask
    sink_scores = sinks.float().view(1, q.shape[1], q.shape[2], 1).expand(len(q), -1, -1, 1)
    weights = torch.softmax(torch.cat((scores, sink_scores), -1), -1)[..., :-1]
    return weights.to(v.dtype) @ v
