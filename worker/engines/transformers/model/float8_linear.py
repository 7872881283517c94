"""Linear layers in float8 for GPUs that multiply such numbers (Ada, Hopper and later).

A weight has a scale for each output. With few rows a step is bound by the memory that the weights
are read from, so there they are multiplied with the inputs as they are. With many rows the
arithmetic counts: inputs become float8, too, with a scale for each row, and a row's result does
not depend on the others.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from worker.engines.transformers.model.float8 import quantize_rows, quantize_weight
from worker.engines.transformers.model.linear_op import chosen_tile

DIVISOR = 16  # of both sizes of a layer: the tensor cores' tiles
MAX_FEW_ROWS = 64  # that the kernel for few rows computes


class Float8Linear(nn.Module):
    """`weight` [outputs, inputs] float8, `scales` [outputs, 1] float32, `bias` [outputs]."""

    def __init__(
        self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Buffer(weight)
        self.scales = nn.Buffer(scales)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.reshape(-1, self.in_features)
        if rows.is_cuda and rows.shape[0] <= MAX_FEW_ROWS:
            out = multiply_few_rows(rows, self.weight, self.scales, self.bias)
        else:
            out = multiply_many_rows(rows, self.weight, self.scales)
            if self.bias is not None:
                out = out + self.bias
        return out.view(*hidden.shape[:-1], self.out_features)


def from_linear(linear: nn.Linear) -> Float8Linear:
    """The layer in float8. Both are in memory until the caller lets go of `linear`."""
    bias = None if linear.bias is None else linear.bias.detach()
    return Float8Linear(*quantize_weight(linear.weight.detach()), bias)


def join(layers: Sequence[Float8Linear]) -> Float8Linear:
    """One layer with the outputs of all, as `fused_qkv.join`."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    weight = torch.cat([layer.weight.view(torch.uint8) for layer in layers])
    return Float8Linear(
        weight.view(layers[0].weight.dtype),
        torch.cat([layer.scales for layer in layers]),
        torch.cat(biases) if biases else None,
    )


def joinable(layers: Sequence[Any]) -> bool:
    """Whether `join` takes them: each has a bias, or none has."""
    if any(type(layer) is not Float8Linear for layer in layers):
        return False
    return len({layer.bias is None for layer in layers}) == 1


def multiply_many_rows(
    rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """[rows, outputs] bfloat16, with inputs rounded to float8."""
    quantized, row_scales = quantize_rows(rows)
    out: torch.Tensor = torch._scaled_mm(
        quantized, weight.t(), row_scales, scales.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return out.to(rows.dtype)


@torch.library.custom_op("canopy::float8_few_rows", mutates_args=())
def multiply_few_rows(
    rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """[rows, outputs] in the dtype of `rows`, which are not rounded."""
    # here, as a machine without a GPU may lack Triton
    from worker.engines.transformers.model import triton_linear

    with torch.cuda.device(rows.device):  # Triton launches on the current device
        tile = chosen_tile(rows, weight)
        return triton_linear.linear(rows.contiguous(), weight, scales[:, 0], bias, tile=tile)


@multiply_few_rows.register_fake
def _(
    rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]))
