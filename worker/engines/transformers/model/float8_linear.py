"""Linear layers in float8 for GPUs that multiply such numbers (Ada, Hopper and later).

A weight has a scale for each output. A single row is multiplied as it is: a step with one is bound
by the memory that the weights are read from, whatever the inputs are. More rows become float8, too,
each with a scale of its own, so that a row's result does not depend on the others. Measured on an
H200, 28,672 outputs of 4,096 inputs, 32 rows: 33.7 us so, 51.4 with inputs in bfloat16.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from worker.engines.transformers.model.float8 import quantize_rows, quantize_weight
from worker.engines.transformers.model.linear_tiles import Tile

DIVISOR = 16  # of both sizes of a layer: the tensor cores' tiles
# Up to so many rows a tile may be chosen; products of more rows are torch's.
ROW_BUCKETS = (1, 16, 32, 64, 128, 256)
_ONE_ROW = Tile(8, 512, 1, 4, 4, "sum")
_WIDENED_AT_A_TIME = 4096  # outputs: a whole weight in the inputs' dtype may have no room

# Of this process, by the weight's shape and a bucket, as measured. Compiled layers do not depend on
# it, so another choice at the next start compiles nothing again.
_tiles: dict[tuple[torch.Size, int], Tile] = {}
# The same for a row's gates and ups together, by the weight's shape and the activation.
_gated_tiles: dict[tuple[torch.Size, str], Tile] = {}


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
        self.exact = False  # see `exact_products`

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.exact:
            return widened_product(self, hidden)
        rows = hidden.reshape(-1, self.in_features)
        if rows.is_cuda and rows.shape[0] == 1:
            out = multiply_row(rows, self.weight, self.scales, self.bias)
        else:
            out = multiply_rows(*quantize_rows(rows), self.weight, self.scales, self.bias)
        return out.to(hidden.dtype).view(*hidden.shape[:-1], self.out_features)


def widened_product(layer: Float8Linear, hidden: torch.Tensor) -> torch.Tensor:
    """`hidden` [..., inputs] by the weight, rounded once, at the end. Slow."""
    parts = [
        functional.linear(hidden.float(), weight.float())
        for weight in layer.weight.split(_WIDENED_AT_A_TIME)
    ]
    out = torch.cat(parts, -1) * layer.scales[:, 0]
    if layer.bias is not None:
        out = out + layer.bias.float()
    return out.to(hidden.dtype)


@contextmanager
def exact_products(model: nn.Module) -> Iterator[None]:
    """Meanwhile no layer of `model` rounds its inputs. One row is computed in wider numbers than
    several are, and rounding to float8 makes a large difference of a small one: answers of the same
    tokens in other steps could not be compared.
    """
    layers = [module for module in model.modules() if type(module) is Float8Linear]
    for layer in layers:
        layer.exact = True
    try:
        yield
    finally:
        for layer in layers:
            layer.exact = False


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


def choose_tile(shape: torch.Size, bucket: int, tile: Tile | None) -> None:
    """From now on a product of up to `bucket` rows with a weight of that shape takes that tile;
    None: it is torch's.
    """
    if tile is None:
        _tiles.pop((shape, bucket), None)
    else:
        _tiles[shape, bucket] = tile


def choose_gated_tile(shape: torch.Size, activation: str, tile: Tile | None) -> None:
    """From now on one row's gates and ups with a weight of that shape are multiplied, activated and
    joined in one kernel, with that tile; None: in two.
    """
    if tile is None:
        _gated_tiles.pop((shape, activation), None)
    else:
        _gated_tiles[shape, activation] = tile


def chosen_gated_tile(shape: torch.Size, activation: str) -> Tile | None:
    """See `choose_gated_tile`."""
    return _gated_tiles.get((shape, activation))


def clear_tiles() -> None:
    """From now on all products of several rows are torch's, and gates are joined by themselves."""
    _tiles.clear()
    _gated_tiles.clear()


def chosen_tile(shape: torch.Size, rows: int) -> Tile | None:
    """See `choose_tile`."""
    bucket = next((bucket for bucket in ROW_BUCKETS if rows <= bucket), None)
    if bucket is None:
        return None
    return _tiles.get((shape, bucket))


@torch.library.custom_op("canopy::float8_row", mutates_args=())
def multiply_row(
    row: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """[1, outputs] in the dtype of `row` [1, inputs], which is not rounded."""
    # here, as a machine without a GPU may lack Triton
    from worker.engines.transformers.model import triton_linear

    tile = chosen_tile(weight.shape, 1) or _ONE_ROW
    with torch.cuda.device(row.device):  # Triton launches on the current device
        return triton_linear.linear(row.contiguous(), weight, scales[:, 0], bias, tile=tile)


@multiply_row.register_fake
def _(
    row: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return row.new_empty((row.shape[0], weight.shape[0]))


@torch.library.custom_op("canopy::float8_gated_row", mutates_args=())
def multiply_gated_row(
    row: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """activation(gate) * up [1, N] in the dtype of `row` [1, inputs], which is not rounded, with
    `weight` [2 N, inputs], gates first.
    """
    from worker.engines.transformers.model import triton_linear

    tile = chosen_gated_tile(weight.shape, activation)
    row = row.contiguous()
    with torch.cuda.device(row.device):  # Triton launches on the current device
        if tile is not None:
            return triton_linear.linear(
                row, weight, scales[:, 0], bias, activation=activation, tile=tile
            )
        tile = chosen_tile(weight.shape, 1) or _ONE_ROW
        gate, up = triton_linear.linear(row, weight, scales[:, 0], bias, tile=tile).chunk(2, -1)
        return triton_linear.activate(gate, up, activation)


@multiply_gated_row.register_fake
def _(
    row: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    return row.new_empty((row.shape[0], weight.shape[0] // 2))


@torch.library.custom_op("canopy::float8_rows", mutates_args=())
def multiply_rows(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """[rows, outputs] bfloat16, with `rows` and `row_scales` of `quantize_rows`."""
    tile = chosen_tile(weight.shape, len(rows))
    if tile is not None:
        from worker.engines.transformers.model import triton_linear

        with torch.cuda.device(rows.device):
            return triton_linear.linear(
                rows, weight, scales[:, 0], bias,
                x_scale=row_scales[:, 0], dtype=torch.bfloat16, tile=tile,
            )  # fmt: skip
    out: torch.Tensor = torch._scaled_mm(
        rows, weight.t(), row_scales, scales.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return out if bias is None else out + bias.to(out.dtype)


@multiply_rows.register_fake
def _(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]), dtype=torch.bfloat16)
