"""Products of few rows with a weight matrix on a GPU, by the kernels of `linear_kernels`.

Weights are [out features, in features], in the dtype of the rows or in float8_e4m3fn with a scale
for each out feature. A row's result does not depend on the other rows, bit for bit, as long as
their number takes the same tile: sums are in an order that follows from shapes alone.
"""

from functools import cache
from typing import Any

import torch
import triton

from worker.engines.transformers.model.dependent_launch import is_supported, launch_options
from worker.engines.transformers.model.linear_kernels import gate_kernel, linear_kernel
from worker.engines.transformers.model.linear_tiles import Tile, default_tile

_GATE_BLOCK = 1024
_MAX_TILES = 65_536  # of output, of a product that is split
_PREFETCHED_LINES = 8  # of each weight row of a tile; 128 bytes each


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    x_scale: torch.Tensor | None = None,
    activation: str = "",
    dtype: torch.dtype | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x W^T for `x` [M, K], M up to 64, and `weight` [N, K]. Returns [M, N] in `dtype`, or
    that of `x`.

    `scale`: [N] float32, of the weight's rows; `x_scale`: [M] float32, of the rows of `x`, which
    may be float8_e4m3fn, too, if `weight` is. `bias`: [N], added to what is scaled.

    `activation`: one of `linear_op.ACTIVATIONS`; `weight` is [2 N, K] then, gates first, and the
    result is activation(gate) * up, both in float32 until then. Such a product is not split.
    """
    rows, inner = x.shape
    columns = weight.shape[0]
    if activation:
        columns //= 2
    out = torch.empty((rows, columns), device=x.device, dtype=dtype or x.dtype)
    if rows == 0:
        return out
    tile = tile or default_tile(
        rows,
        columns,
        gated=bool(activation),
        x_bytes=x.element_size(),
        weight_bytes=weight.element_size(),
    )
    tiles = triton.cdiv(columns, tile.columns)
    parts = arrived = out
    if tile.split > 1:
        parts = torch.empty((tile.split, rows, columns), device=x.device, dtype=torch.float32)
        arrived = _arrived(x.device)
    grid: Any = (tiles, tile.split)
    linear_kernel[grid](
        x, weight, out if x_scale is None else x_scale, out if scale is None else scale,
        out if bias is None else bias, out, parts, arrived,
        rows, columns, inner, x.stride(0), weight.stride(0),
        BLOCK_M=_block_rows(rows, tile.method), BLOCK_N=tile.columns, BLOCK_K=tile.inner,
        SPLIT_K=tile.split, METHOD=tile.method, STAGES=tile.stages, ACTIVATION=activation,
        SCALED=scale is not None, ROW_SCALED=x_scale is not None, BIASED=bias is not None,
        EVEN_N=columns % tile.columns == 0, EVEN_K=inner % (tile.inner * tile.split) == 0,
        PREFETCH=_PREFETCHED_LINES, num_warps=tile.warps, num_stages=tile.stages,
        **_launch_options(x.device),
    )  # fmt: skip
    return out


def activate(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up, both contiguous [M, N]."""
    out = torch.empty_like(gate)
    grid: Any = (triton.cdiv(out.numel(), _GATE_BLOCK),)
    if out.numel():
        gate_kernel[grid](
            gate, up, out, out.numel(),
            ACTIVATION=activation, BLOCK=_GATE_BLOCK, **launch_options(gate.device),
        )  # fmt: skip
    return out


def _block_rows(rows: int, method: str) -> int:
    if method == "sum":
        return 1
    return max(16, triton.next_power_of_2(rows))


@cache
def _arrived(device: torch.device) -> torch.Tensor:
    """How many programs of each tile have written their part; each product leaves zeros. Products
    of a device follow each other on one stream.
    """
    return torch.zeros(_MAX_TILES, dtype=torch.int32, device=device)


@cache
def _launch_options(device: torch.device) -> dict[str, Any]:
    """As `launch_options`, but wherever it can be: weights are fetched while a product waits."""
    if is_supported(device):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}
