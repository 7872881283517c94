"""The input of one forward pass: which tokens of which slots it computes."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

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


class Block(NamedTuple):
    """Decoding rows that one attention call computes: neighbouring slots of similar length."""

    rows: torch.Tensor  # [rows] int64: their indices in the step
    offsets: torch.Tensor  # [rows] int64: their slots, relative to `first_slot`
    first_slot: int
    end_slot: int  # exclusive; some slots in between may be unused
    length: int  # keys read per slot
    mask: torch.Tensor  # [slots, 1, 1, length] float: 0 where a slot has a token, else -inf


@dataclass(frozen=True)
class Step:
    """What the attention of every layer needs to know of the forward pass in progress.

    The tensors are on the model's first device; `slot_mapping` and `known_lengths` are int64, the
    others int32. With CUDA graphs they are the graph's static inputs, refilled for each step.
    """

    slot_mapping: torch.Tensor  # [tokens] slot * context + position: where keys and values go
    slots: torch.Tensor  # [chunks]
    lengths: torch.Tensor  # [chunks] tokens in the slot, including this step's
    chunks: tuple[PrefillChunk, ...] = ()  # on the host, for the SDPA path
    chunk_starts: torch.Tensor | None = None  # [chunks + 1] offsets; None: one token per chunk
    max_chunk_length: int = 1
    batch_invariant: bool = False  # a row's rounding must not depend on the other rows
    prefill_lengths: torch.Tensor | None = None  # [tokens] `known_length` of the token's chunk
    copies: dict[torch.device, "Step"] = field(default_factory=dict, repr=False, compare=False)
    _blocks: list[Block] = field(default_factory=list, repr=False, compare=False)

    @property
    def known_lengths(self) -> torch.Tensor:
        """[tokens] how long each token's sequence is known to become; see `rope`."""
        return self.lengths if self.prefill_lengths is None else self.prefill_lengths

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
                chunk_starts=_moved(self.chunk_starts, device),
                prefill_lengths=_moved(self.prefill_lengths, device),
                copies={},
                _blocks=[],
            )
        return self.copies[device]

    def blocks(self, context: int, dtype: torch.dtype) -> list[Block]:
        """The rows of a decoding step, grouped; computed by the first layer that asks."""
        if not self._blocks:
            device = self.slot_mapping.device
            self._blocks.extend(
                decode_blocks(
                    self.chunks, context, dtype, device, batch_invariant=self.batch_invariant
                )
            )
        return self._blocks


def _moved(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


class _Row(NamedTuple):
    """A decoding row. Sorts by slot."""

    slot: int
    row: int
    length: int


def decode_blocks(
    chunks: Iterable[PrefillChunk],
    context: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    batch_invariant: bool = False,
) -> list[Block]:
    """Groups the rows of a decoding step into as few blocks as is sensible. The number of keys read
    for a row depends on its own length alone.

    `batch_invariant`: one block per row, as the order of a library's sums depends on the thread.
    """
    by_key_count: dict[int, list[_Row]] = {}
    for row, chunk in enumerate(chunks):
        key_count = padded_length(chunk.end, context)
        by_key_count.setdefault(key_count, []).append(_Row(chunk.slot, row, chunk.end))
    blocks = []
    for key_count, rows in by_key_count.items():
        rows.sort()
        runs = [[row] for row in rows] if batch_invariant else _dense_runs(rows)
        for run in runs:
            blocks.append(_block(run, key_count, dtype, device))
    return blocks


def padded_length(length: int, context: int) -> int:
    """How many keys are read for a row of `length` tokens."""
    return min(context, -(-length // _KEY_MULTIPLE) * _KEY_MULTIPLE)


def _dense_runs(rows: list[_Row]) -> list[list[_Row]]:
    """Splits `rows`, sorted by slot, where more than half the block would be unused slots."""
    runs = [[rows[0]]]
    for row in rows[1:]:
        run = runs[-1]
        slot_count = row.slot - run[0].slot + 1
        if slot_count > 2 * (len(run) + 1):
            runs.append([row])
        else:
            run.append(row)
    return runs


def _block(run: list[_Row], key_count: int, dtype: torch.dtype, device: torch.device) -> Block:
    first_slot, end_slot = run[0].slot, run[-1].slot + 1
    offsets = torch.tensor([row.slot - first_slot for row in run])
    # Unused slots attend to one key: softmax over none is NaN.
    lengths = torch.ones(end_slot - first_slot, dtype=torch.long)
    lengths[offsets] = torch.tensor([row.length for row in run])
    hidden = torch.arange(key_count) >= lengths[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return Block(
        rows=torch.tensor([row.row for row in run]).to(device),
        offsets=offsets.to(device),
        first_slot=first_slot,
        end_slot=end_slot,
        length=key_count,
        mask=mask[:, None, None].to(device),
    )
