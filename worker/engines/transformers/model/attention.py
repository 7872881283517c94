"""Attention over slots: each token of a step is written into its slot and reads what the slot holds.

The library's models call `attend_layer` where they would call sdpa (transformers' AttentionInterface), so any
architecture that takes an attention function works: its projections, norms, rotary embeddings and windows stay the
library's business. A step packs the tokens of many sequences into one row [1, tokens], each at its own position:

    decoding    one token a sequence:      a  b  c  d
    prefill     pieces of prompts:         a a a a a  b b b  c c

so nothing is padded. `attend` is opaque to torch.compile: what it needs to know of the step it finds in `now`.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface

NAME = "canopy_slots"  # of the attention function, for transformers
_PADDED = 128  # lengths that decode together are rounded up to a multiple of it


class Piece(NamedTuple):
    """Consecutive tokens of one sequence within a step."""

    slot: int
    start: int  # position of the first of them
    length: int
    whole: int = 0  # tokens of the prompt that it is a piece of, if that is longer

    @property
    def end(self) -> int:
        """Tokens of the sequence with this piece."""
        return self.start + self.length

    @property
    def reach(self) -> int:
        """How long the sequence is known to become."""
        return max(self.whole, self.end)


class Block(NamedTuple):
    """Rows of a decoding step that are computed by one call: they are (nearly) neighbours among the slots, and of about
    the same length.
    """

    rows: torch.Tensor  # [rows] int64: which of the step's
    spots: torch.Tensor  # [rows] int64: their slots, counted from `first`
    first: int  # slots from here
    last: int  # to here; some between may be nobody's
    length: int  # so many keys are read of each
    mask: torch.Tensor  # [slots, 1, 1, length] float: 0 for what its row holds, else -inf


@dataclass(frozen=True)
class Step:
    """What the attention of every layer needs to know of the step that is being computed.

    The tensors are on the model's first device: places and reaches [tokens] int64, the others int32. With CUDA graphs
    they are the graph's own inputs, filled anew for each step.
    """

    places: torch.Tensor  # slot * context + position, where each token's keys and values go
    slots: torch.Tensor  # [pieces]
    lengths: torch.Tensor  # [pieces] tokens that the slot holds with this step's
    pieces: tuple[Piece, ...] = ()  # known to the host: the plain path loops over them
    starts: torch.Tensor | None = None  # [pieces + 1] first token of each; None: one token a piece
    longest: int = 1  # most tokens of a piece
    fixed: bool = False  # no row may be rounded otherwise for another one's sake
    reaches: torch.Tensor | None = None  # [tokens] of pieces; see `reach`
    elsewhere: dict[torch.device, "Step"] = field(default_factory=dict, repr=False, compare=False)
    blocks: list[Block] = field(
        default_factory=list, repr=False, compare=False
    )  # made once a step, by `blocks_of`

    @property
    def reach(self) -> torch.Tensor:
        """[tokens] how long each token's sequence is known to become; see `rope`."""
        return self.lengths if self.reaches is None else self.reaches

    def on(self, device: torch.device) -> "Step":
        """The same for a layer on that device: a model's layers may be spread over several. Copied once a device."""
        if device == self.places.device:
            return self
        if device not in self.elsewhere:
            self.elsewhere[device] = replace(
                self,
                places=self.places.to(device, non_blocking=True),
                slots=self.slots.to(device, non_blocking=True),
                lengths=self.lengths.to(device, non_blocking=True),
                reaches=None
                if self.reaches is None
                else self.reaches.to(device, non_blocking=True),
                starts=None if self.starts is None else self.starts.to(device, non_blocking=True),
                elsewhere={},
                blocks=[],
            )
        return self.elsewhere[device]


_local = threading.local()


@contextmanager
def now(step: Step) -> Iterator[None]:
    """`step` is what `attend` computes in this thread."""
    _local.step = step
    try:
        yield
    finally:
        del _local.step


def current() -> Step | None:
    """The step that is being computed in this thread, if it is one over slots."""
    return getattr(_local, "step", None)


def attend_layer(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """For transformers: `query` [1, heads, tokens, size], `key` and `value` [1, kv heads, tokens, size]."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        module.slot_keys,
        module.slot_values,
        scale,
        sliding_window or 0,
        softcap or 0.0,
    )
    return out[None], None


@torch.library.custom_op("canopy::attend", mutates_args=("keys", "values"))
def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """`query` [tokens, heads, size] over `keys` and `values` [slots, context, kv heads, size], which get this step's
    `key` and `value` [tokens, kv heads, size] first. Returns [tokens, heads, size].

    `window`: how many of the newest tokens a token sees, 0: all of them. `softcap`: 0 is none.
    """
    now_step: Step = _local.step
    step = now_step.on(query.device)
    fast = query.is_cuda and query.dtype != torch.float32
    if fast and step.starts is None:
        with torch.cuda.device(query.device):  # Triton launches on the current one
            return _kernels().decode(
                query, key, value, keys, values, step.slots, step.lengths, scale, window, softcap
            )
    _flat(keys).index_copy_(0, step.places, key)
    _flat(values).index_copy_(0, step.places, value)
    if fast:
        return _kernels().prefill(query, keys, values, step, scale, window, softcap)
    return _plain(query, keys, values, step, scale, window, softcap)


@attend.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def _kernels() -> Any:
    """They need Triton, which a machine without a GPU may lack."""
    from worker.engines.transformers.model import triton_attention as kernels

    return kernels


def _flat(cache: torch.Tensor) -> torch.Tensor:
    """[slots * context, kv heads, size]"""
    return cache.view(-1, *cache.shape[2:])


def _plain(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """With the library's own attention, and nothing copied: pieces of prompts one by one, decoding rows together."""
    if (
        step.starts is None
        and not softcap
        and not (window and any(piece.end > window for piece in step.pieces))
    ):
        return _decode_plainly(query, keys, values, step, scale)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    first = 0
    for piece in step.pieces:
        last, end = first + piece.length, piece.end
        begin = max(0, piece.start - window + 1) if window else 0
        mine = query[first:last].transpose(0, 1)[None]
        k, v = (cache[piece.slot, begin:end].transpose(0, 1)[None] for cache in (keys, values))
        mask = _mask(piece, begin, window, query.device)
        part = (
            _capped(mine, k, v, mask, scale, softcap) if softcap else _sdpa(mine, k, v, mask, scale)
        )
        out[first:last] = part[0].transpose(0, 1)
        first = last
    return out


def _decode_plainly(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scale: float
) -> torch.Tensor:
    """A token each for all rows, in few calls: a call costs more than the arithmetic of a short row. The heads that
    share a key are its queries, so keys are not repeated for them.
    """
    tokens, heads, size = query.shape
    grouped = query.reshape(tokens, keys.shape[2], -1, size)
    out = torch.empty_like(grouped)
    if not step.blocks:
        step.blocks.extend(
            blocks_of(step.pieces, keys.shape[1], query.dtype, query.device, fixed=step.fixed)
        )
    for block in step.blocks:
        asked = grouped.new_zeros(block.last - block.first, *grouped.shape[1:])
        asked[block.spots] = grouped[block.rows]
        k, v = (
            cache[block.first : block.last, : block.length].transpose(1, 2)
            for cache in (keys, values)
        )
        found = functional.scaled_dot_product_attention(
            asked, k, v, attn_mask=block.mask, scale=scale
        )
        out[block.rows] = found[block.spots]
    return out.view(tokens, heads, size)


def blocks_of(
    pieces: Iterable[Piece],
    context: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    fixed: bool = False,
) -> list[Block]:
    """The rows of a decoding step, in as few blocks as is sensible. How many keys are read for a row follows from its
    own length alone. `fixed`: each row is a block, for a library's sums differ in the last bit with the thread that
    computes them.
    """
    alike: dict[int, list[tuple[int, int, int]]] = {}
    for row, piece in enumerate(pieces):
        alike.setdefault(padded(piece.end, context), []).append((piece.slot, row, piece.end))
    cut = (lambda rows: [[row] for row in rows]) if fixed else _runs
    return [
        _block(run, length, dtype, device)
        for length, rows in alike.items()
        for run in cut(sorted(rows))
    ]


def padded(length: int, context: int) -> int:
    """How many keys are read for a row that holds `length` tokens."""
    return min(context, -(-length // _PADDED) * _PADDED)


def _runs(rows: list[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """`rows`, which begin with their slots and are in their order, cut where more than half of a block would be
    nobody's.
    """
    run: list[tuple[int, int, int]] = []
    for row in rows:
        if run and row[0] - run[0][0] + 1 > 2 * (len(run) + 1):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _block(
    run: list[tuple[int, int, int]], length: int, dtype: torch.dtype, device: torch.device
) -> Block:
    first, last = run[0][0], run[-1][0] + 1
    held = torch.ones(
        last - first, dtype=torch.long
    )  # nobody's rows see a key, for no key at all gives no number
    spots = torch.tensor([slot - first for slot, _, _ in run])
    held[spots] = torch.tensor([end for _, _, end in run])
    hidden = torch.arange(length) >= held[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))[:, None, None]
    rows = torch.tensor([row for _, row, _ in run])
    return Block(rows.to(device), spots.to(device), first, last, length, mask.to(device))


def _mask(piece: Piece, begin: int, window: int, device: torch.device) -> torch.Tensor | None:
    """[length, held] which tokens each token sees; None where one token sees all of them."""
    if piece.length == 1:
        return None
    at = torch.arange(piece.start, piece.start + piece.length, device=device)[:, None]
    other = torch.arange(begin, piece.start + piece.length, device=device)[None, :]
    seen = other <= at
    return seen & (other > at - window) if window else seen


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=True
    )


def _capped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Gemma 2 bounds its scores by a tanh, which sdpa cannot."""
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(-1, -2) * scale
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores.float(), -1).to(q.dtype) @ v.repeat_interleave(group, 1)


def register() -> None:
    """Makes `NAME` known to transformers; no mask is built for it."""
    AttentionInterface.register(NAME, attend_layer)
