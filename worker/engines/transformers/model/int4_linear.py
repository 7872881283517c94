"""Weights of 4 bits in a CPU's memory, multiplied in bfloat16 by torch's packed products.

A weight is one of 16 levels between the least and the greatest of its group of 32 neighbours, as in
llama.cpp's Q4_1, so a model that was published in that format loses almost nothing.

A step that decodes is bound by memory, of which 4 bits take half of what 8 bits do. Prompts are
bound by arithmetic: their rows are multiplied as 8-bit integers, which is faster from 64 rows on.
What a row is decides which of both it meets, never how many there are, and both give it the same
bits in any batch.
"""

import torch
from torch import nn

from worker.engines.transformers.model.attention import current_step
from worker.engines.transformers.model.errors import UnsupportedScheme
from worker.errors import one_line

_GROUP = 32  # weights of an output that share a scale, the smallest that the operation takes
_LEVELS = 15  # steps from the least to the greatest weight of a group
_MIDDLE = 8  # the level that the operation takes for 0
_OUTPUT_MULTIPLE = 64  # outputs that the operation packs together
MAX_DECODING_ROWS = 128  # more than decode together on a CPU, and than the check of a format reads
_TILES = 2  # passed on to the operation for GPUs, which another one reads


class Int4(nn.Module):
    """A linear layer whose inputs and outputs are float32."""

    def __init__(self, linear: nn.Linear, prefill: nn.Module | None = None) -> None:
        """`prefill`: the same layer for prompts. Raises UnsupportedScheme."""
        super().__init__()
        self.in_features, self._out_features = linear.in_features, linear.out_features
        if not divides(linear):
            raise UnsupportedScheme(f"{self._out_features} outputs of {self.in_features} inputs")
        self._weight, self._scales_and_zeros = _packed(linear.weight.detach())
        # in a tuple, as looking up a submodule takes as long as a small operation
        self._prefill = (prefill,)
        self._bias: torch.Tensor | None = None
        if linear.bias is not None:
            self._bias = linear.bias.detach().clone()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.reshape(-1, self.in_features)
        prefill = self._prefill[0]
        if prefill is not None and _of_prompts(rows):
            prefilled: torch.Tensor = prefill(hidden)
            return prefilled
        out = _multiply(rows.bfloat16(), self._weight, self._scales_and_zeros).float()
        if self._bias is not None:
            out.add_(self._bias)
        return out.view(*hidden.shape[:-1], self._out_features)


def _of_prompts(rows: torch.Tensor) -> bool:
    """Whether the rows are those of prompts; without a runner only their number tells."""
    step = current_step()
    if step is None:
        return rows.shape[0] > MAX_DECODING_ROWS
    return step.chunk_starts is not None


def divides(linear: nn.Linear) -> bool:
    """Whether the operation takes a layer of this size."""
    return not (linear.in_features % _GROUP or linear.out_features % _OUTPUT_MULTIPLE)


def _packed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of float32 [outputs, inputs]: the packed levels, and [groups, outputs, 2] bfloat16 scales and
    what the middle level stands for. Raises UnsupportedScheme.
    """
    groups = weight.unflatten(-1, (-1, _GROUP))
    least, greatest = groups.aminmax(dim=-1, keepdim=True)
    # Levels are chosen for the numbers as bfloat16 rounds them.
    scales = ((greatest - least) / _LEVELS).clamp_(min=1e-20).bfloat16().float()
    zeros = (least + _MIDDLE * scales).bfloat16().float()
    levels = ((groups - zeros) / scales).round_().add_(_MIDDLE).clamp_(0, _LEVELS)
    try:
        packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            levels.flatten(1).int(), _TILES
        )
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedScheme(f"no 4-bit products in this torch: {one_line(error)}") from error
    both = torch.cat((scales, zeros), -1).transpose(0, 1).contiguous()
    return packed, both.bfloat16()


def _multiply(rows: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """bfloat16 [rows, outputs]. Raises UnsupportedScheme."""
    try:
        # not by torch.ops, whose call takes twice as long
        out: torch.Tensor = torch._weight_int4pack_mm_for_cpu(rows, packed, _GROUP, scales)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedScheme(f"no 4-bit products on this CPU: {one_line(error)}") from error
    return out
