"""The input of one forward pass: which tokens of which slots it computes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from worker.engines.transformers.model.prefix_tiles import PREFIX_TILE_COST

MAX_PREFIXES = 256  # groups of rows that share one in a step; a power of two
_KEY_MULTIPLE = 128  # the number of keys read for a decoding row is rounded up to a multiple of it


class PrefillChunk(NamedTuple):
    """Consecutive tokens of one sequence in a step. A decoding row is a chunk of one token."""

    slot: int
    start: int  # position of its first token
    length: int
    prompt_length: int = 0  # of the whole prompt, where the chunk is only a part of it

    @property
    def end(self) -> int:
        """Position after its last token: the sequence's length once the chunk is computed."""
        return self.start + self.length

    @property
    def known_length(self) -> int:
        """How long the sequence is known to become."""
        return max(self.prompt_length, self.end)


class DecodeRows(NamedTuple):
    """Sequences whose newest token a step computes, each at its position."""

    slots: Sequence[int]
    positions: Sequence[int]


NO_ROWS = DecodeRows((), ())


class BlockRange(NamedTuple):
    """Blocks of the cache that belong to a sequence, from the one with number `start` on: equally
    many of each group of layers, one group after the other.
    """

    slot: int
    start: int
    blocks: tuple[int, ...]


class SharedPrefixes(NamedTuple):
    """The prefixes that decoding rows share, on the device; all int32. Prefix p is the first
    `tokens[p]` tokens of the slots `members[starts[p]:starts[p + 1]]`, in the same blocks.
    """

    members: torch.Tensor  # [slots]
    starts: torch.Tensor  # [MAX_PREFIXES + 1]
    tokens: torch.Tensor  # [MAX_PREFIXES]
    row_of_slot: torch.Tensor  # [slots + 1] of this step; of slots that it does not compute: any
    lengths: torch.Tensor  # [rows] tokens of the prefix that a row shares; 0: none


class SharedPrefix(NamedTuple):
    """Decoding sequences whose first `tokens` tokens are in the same blocks."""

    tokens: int
    slots: tuple[int, ...]

    def saved_tokens(self, tile_rows: int) -> int:
        """How many tokens' reading is saved if it is read once for each tile of so many rows."""
        rows = len(self.slots)
        tiles = -(-rows // tile_rows)
        return (rows - PREFIX_TILE_COST * tiles) * self.tokens


class RowGroup(NamedTuple):
    """Decoding rows that one attention call computes: neighbouring slots of similar length."""

    rows: torch.Tensor  # [rows] int64: their indices in the step
    offsets: torch.Tensor  # [rows] int64: their slots, relative to `first_slot`
    first_slot: int
    end_slot: int  # exclusive; some slots in between may be unused
    length: int  # keys read per slot
    mask: torch.Tensor  # [slots, 1, 1, length] float: 0 where a slot has a token, else -inf
    in_order: bool  # its rows are the step's first ones, in the order of its slots


@dataclass(frozen=True)
class Step:
    """What the attention of every layer needs to know of the forward pass in progress.

    Its tokens are those of rows that decode, one each, then those of chunks. The tensors are on the
    model's first device; `slot_mapping` and `known_lengths` are int64, the others int32. With CUDA
    graphs they are the graph's static inputs, refilled for each step.
    """

    # Where keys and values go in the flattened cache: [tokens], with blocks [groups, tokens]
    slot_mapping: torch.Tensor
    slots: torch.Tensor  # [rows]
    lengths: torch.Tensor  # [rows] tokens in the slot, including this step's; 0: unused
    chunks: tuple[PrefillChunk, ...] = ()  # on the host, for the SDPA path
    chunk_slots: torch.Tensor | None = None  # [chunks]; None: there are no chunks
    chunk_lengths: torch.Tensor | None = None  # [chunks] as `lengths`
    # [chunks + 1] offsets among the tokens. Before the first one are the rows that are used.
    chunk_starts: torch.Tensor | None = None
    batch_invariant: bool = False  # a row's rounding must not depend on the other rows
    token_lengths: torch.Tensor | None = None  # [tokens] int64; see `known_lengths`
    # [groups, slots + 1, blocks a sequence] int32, by device: a sequence's blocks of each group of
    # layers, see `block_groups`; None: slots are rows
    block_tables: dict[torch.device, torch.Tensor] | None = None
    longest: int = 0  # tokens that no decoding row exceeds; 0: not known
    prefixes: SharedPrefixes | None = None  # what decoding rows share; None: nothing is used of it
    # [kept] int64: the tokens that the last layer is computed of; see `last_layer`. None: all
    kept: torch.Tensor | None = None
    copies: dict[torch.device, "Step"] = field(default_factory=dict, repr=False, compare=False)
    _row_groups: list[RowGroup] = field(default_factory=list, repr=False, compare=False)

    @property
    def known_lengths(self) -> torch.Tensor:
        """[tokens] how long each token's sequence is known to become; see `rope`."""
        return self.lengths if self.token_lengths is None else self.token_lengths

    def on(self, device: torch.device) -> "Step":
        """The same step for a layer on `device`. Copied once per device."""
        if device == self.slot_mapping.device:
            return self
        if device not in self.copies:
            self.copies[device] = replace(
                self,
                slot_mapping=self.slot_mapping.to(device, non_blocking=True),
                slots=self.slots.to(device, non_blocking=True),
                lengths=self.lengths.to(device, non_blocking=True),
                chunk_slots=_moved(self.chunk_slots, device),
                chunk_lengths=_moved(self.chunk_lengths, device),
                chunk_starts=_moved(self.chunk_starts, device),
                token_lengths=_moved(self.token_lengths, device),
                prefixes=None,  # only graphs have them, and compute on one device
                kept=None,  # as above
                copies={},
                _row_groups=[],
            )
        return self.copies[device]

    def row_groups(self, context: int, dtype: torch.dtype) -> list[RowGroup]:
        """The rows of a decoding step, grouped; computed by the first layer that asks."""
        if not self._row_groups:
            device = self.slot_mapping.device
            groups = group_rows(
                self.chunks, context, dtype, device, batch_invariant=self.batch_invariant
            )
            self._row_groups.extend(groups)  # the dataclass is frozen
        return self._row_groups


def _moved(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    if tensor is None:
        return None
    return tensor.to(device, non_blocking=True)


class _Row(NamedTuple):
    """A decoding row. Sorts by slot."""

    slot: int
    row: int
    length: int


def group_rows(
    chunks: Iterable[PrefillChunk],
    context: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    batch_invariant: bool = False,
) -> list[RowGroup]:
    """Groups the rows of a decoding step into as few groups as is sensible. The number of keys read
    for a row depends on its own length alone.

    `batch_invariant`: one group per row, as the order of a library's sums depends on the thread.
    """
    by_key_count: dict[int, list[_Row]] = {}
    for row, chunk in enumerate(chunks):
        key_count = padded_length(chunk.end, context)
        by_key_count.setdefault(key_count, []).append(_Row(chunk.slot, row, chunk.end))
    groups = []
    for key_count, rows in by_key_count.items():
        rows.sort()
        if batch_invariant:
            runs = [[row] for row in rows]
        else:
            runs = _dense_runs(rows)
        for run in runs:
            groups.append(_row_group(run, key_count, dtype, device))
    return groups


def padded_length(length: int, context: int) -> int:
    """How many keys are read for a row of `length` tokens."""
    return min(context, -(-length // _KEY_MULTIPLE) * _KEY_MULTIPLE)


def _dense_runs(rows: list[_Row]) -> list[list[_Row]]:
    """Splits `rows`, sorted by slot, where more than half the group would be unused slots."""
    runs = [[rows[0]]]
    for row in rows[1:]:
        run = runs[-1]
        slot_count = row.slot - run[0].slot + 1
        if slot_count > 2 * (len(run) + 1):
            runs.append([row])
        else:
            run.append(row)
    return runs


def _row_group(
    run: list[_Row], key_count: int, dtype: torch.dtype, device: torch.device
) -> RowGroup:
    first_slot, end_slot = run[0].slot, run[-1].slot + 1
    offsets = torch.tensor([row.slot - first_slot for row in run])
    # Unused slots attend to one key: softmax over none is NaN.
    lengths = torch.ones(end_slot - first_slot, dtype=torch.long)
    lengths[offsets] = torch.tensor([row.length for row in run])
    hidden = torch.arange(key_count) >= lengths[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return RowGroup(
        rows=torch.tensor([row.row for row in run]).to(device),
        offsets=offsets.to(device),
        first_slot=first_slot,
        end_slot=end_slot,
        length=key_count,
        mask=mask[:, None, None].to(device),
        in_order=all((row.row, row.slot) == (i, first_slot + i) for i, row in enumerate(run)),
    )
