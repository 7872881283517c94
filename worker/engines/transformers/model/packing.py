"""A step's inputs as one array, so that one upload carries them."""

from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from worker.engines.transformers.model.cuda_graphs import MixedSize
from worker.engines.transformers.model.step import DecodeRows, PrefillChunk

NEWEST = -1  # instead of a token id: the newest token of its slot
_PARTS = 4  # numbers a token


def pack_step(
    rows: DecodeRows,
    chunks: list[PrefillChunk],
    tokens: list[list[int]],
    ends_prompt: list[bool],
    *,
    size: int,
    logits: int,
    spare_slot: int,
) -> npt.NDArray[np.int64]:
    """The int64 inputs of a step of `size` tokens: those of `rows`, then those of `chunks`, then
    padding, which computes in the spare slot. Per token its id, slot, position and known length;
    then, for each of `logits` places, the index of the token whose logits are wanted, and its slot.
    """
    packed = np.zeros(_PARTS * size + 2 * logits, np.int64)
    ids, slots, positions, known_lengths = packed[: _PARTS * size].reshape(_PARTS, size)
    wanted, wanted_slots = packed[_PARTS * size :].reshape(2, logits)
    end, count = len(rows.slots), len(rows.slots)
    ids[:end], slots[:end], positions[:end] = NEWEST, rows.slots, rows.positions
    known_lengths[:end] = positions[:end] + 1
    wanted[:count], wanted_slots[:count] = np.arange(count), rows.slots
    for chunk, chunk_tokens, ends in zip(chunks, tokens, ends_prompt, strict=True):
        place = slice(end, end + chunk.length)
        ids[place], slots[place] = chunk_tokens, chunk.slot
        positions[place] = np.arange(chunk.start, chunk.end)
        known_lengths[place] = chunk.known_length
        end += chunk.length
        if ends:
            wanted[count], wanted_slots[count] = end - 1, chunk.slot
            count += 1
    slots[end:] = wanted_slots[count:] = spare_slot
    return packed


def chunk_table(chunks: list[PrefillChunk], rows: int) -> list[int]:
    """The int32 inputs of chunks behind `rows`: per chunk its slot, then its end, then its offset
    among the step's tokens, with their number at the end.
    """
    slots = [chunk.slot for chunk in chunks]
    ends = [chunk.end for chunk in chunks]
    starts = accumulate((chunk.length for chunk in chunks), initial=rows)
    return [*slots, *ends, *starts]


class MixedInputs:
    """What a step of `size` reads of `pack_step` (int64) and `chunk_table` (int32), on the device:
    views of them.
    """

    def __init__(self, size: MixedSize, packed: torch.Tensor, table: torch.Tensor) -> None:
        self.size = size
        self._packed, self._table = packed, table
        tokens, logits = packed[: _PARTS * size.tokens], packed[_PARTS * size.tokens :]
        self.ids, self.slots, self.positions, self.known_lengths = tokens.view(_PARTS, -1)
        self.logits_at, self.logits_slots = logits.view(2, -1)
        chunks = len(table) // 3
        self.chunk_slots, self.chunk_lengths, self.chunk_starts = table.split(
            [chunks, chunks, chunks + 1]
        )

    def fill(self, packed: npt.NDArray[np.int64], table: list[int]) -> None:
        """Uploads the next step's inputs, without waiting for the copy."""
        packed_host = torch.from_numpy(packed)
        table_host = torch.tensor(table, dtype=torch.int32)
        if self._packed.is_cuda:  # else the copy would wait
            packed_host, table_host = packed_host.pin_memory(), table_host.pin_memory()
        self._packed.copy_(packed_host, non_blocking=True)
        self._table.copy_(table_host, non_blocking=True)

    def row_lengths(self) -> torch.Tensor:
        """[rows] int32 tokens of each decoding row, the newest included; 0: an unused row."""
        positions = self.positions[: self.size.rows]
        row = torch.arange(self.size.rows, device=positions.device)
        return torch.where(row < self.chunk_starts[0], positions + 1, 0).int()
