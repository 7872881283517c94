"""How the rows of a decoding step are divided among a GPU's programs where weights are float8: the
fastest of some tiles, or torch's own product, for each size of layer, as measured once when the
model is loaded.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
import torch

from worker.engines.transformers.model.cuda_graphs import INVARIANT_ROWS
from worker.engines.transformers.model.float8 import quantize_rows
from worker.engines.transformers.model.float8_linear import (
    ROW_BUCKETS,
    Float8Linear,
    choose_gated_tile,
    choose_tile,
    clear_tiles,
    multiply_gated_row,
    multiply_row,
    multiply_rows,
    widened_product,
)
from worker.engines.transformers.model.fused_mlp import FusedFloat8MLP
from worker.engines.transformers.model.linear_op import ACTIVATIONS
from worker.engines.transformers.model.linear_tiles import Tile
from worker.engines.transformers.model.linear_tuning import (
    LIMIT,
    TILE_ERRORS,
    agree,
    time_product,
)

log = structlog.get_logger(__name__)

Product = Callable[[torch.Tensor, Float8Linear], torch.Tensor]
# Milliseconds of a product with layers of a size, of so many rows, as it is chosen now; None: the
# GPU cannot, or it computes something else.
Timer = Callable[[list[Float8Linear], int], float | None]
# The same of a row's gates and ups together, with that activation.
GatedTimer = Callable[[list[Float8Linear], str], float | None]
_STREAMED = tuple(Tile(64, 256, split, 4, 4, "swapped") for split in (1, 2, 4))
_LARGE = tuple(Tile(128, 128, split, 8, 4, "swapped") for split in (1, 2, 4))
_CANDIDATES: dict[int, tuple[Tile, ...]] = {
    1: (Tile(8, 512, 1, 4, 4, "sum"), Tile(8, 1024, 1, 4, 4, "sum")),
    16: _STREAMED,
    32: _STREAMED,
    64: (*_STREAMED, *_LARGE),
    128: _LARGE,
    256: _LARGE,
}

_GATED = (Tile(8, 512, 1, 4, 4, "sum"), Tile(8, 512, 1, 2, 5, "sum"), Tile(4, 1024, 1, 4, 4, "sum"))


def tune(
    model: Any,
    slots: int,
    *,
    timer: Timer | None = None,
    gated_timer: GatedTimer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Chooses how layers of each size compute each number of rows that decode. Returns how many
    layers there are. Raises RuntimeError, torch's; no tile that failed stays chosen then.
    """
    clear_tiles()
    deadline = clock() + LIMIT
    layers: dict[torch.Size, list[Float8Linear]] = defaultdict(list)
    gated: dict[tuple[torch.Size, str], list[Float8Linear]] = defaultdict(list)
    for module in model.modules():
        if type(module) is Float8Linear:
            layers[module.weight.shape].append(module)
        elif type(module) is FusedFloat8MLP:
            gated[module.joined.weight.shape, module.activation].append(module.joined)
    buckets = measured_buckets(slots)
    choices: list[Callable[[], None]] = []
    for alike in layers.values():
        choices += [partial(_choose, bucket, alike, timer or time_layers) for bucket in buckets]
    if 1 in buckets:  # after the others: it is compared with two kernels as they were chosen
        for (_, activation), alike in gated.items():
            choices.append(partial(_choose_gated, activation, alike, gated_timer or time_gated))
    for choose in choices:
        if clock() >= deadline:
            log.warning("float8 layers are not measured any longer", seconds=LIMIT)
            break
        choose()
    return sum(len(alike) for alike in layers.values())


def measured_buckets(slots: int) -> tuple[int, ...]:
    """Those of decoding steps, without the one that steps of requests that name a seed have: these
    must not depend on what a measurement at this start has said.
    """
    invariant = min(slots, INVARIANT_ROWS)
    buckets: list[int] = []
    for before, bucket in zip((0, *ROW_BUCKETS), ROW_BUCKETS, strict=False):
        if before < slots and not before < invariant <= bucket:
            buckets.append(bucket)
    return tuple(buckets)


def _choose(bucket: int, layers: list[Float8Linear], timer: Timer) -> None:
    shape = layers[0].weight.shape
    candidates = list[Tile | None](_CANDIDATES[bucket])
    if bucket > 1:
        candidates.insert(0, None)
    times: dict[Tile | None, float] = {}
    try:
        for tile in candidates:
            choose_tile(shape, bucket, tile)
            milliseconds = timer(layers, bucket)
            if milliseconds is not None:
                times[tile] = milliseconds
    finally:  # an error ends the tuning, and what failed must not stay chosen
        choose_tile(shape, bucket, None)
    chosen = min(times, key=times.__getitem__, default=None)
    choose_tile(shape, bucket, chosen)
    log.info(
        "float8 layer",
        shape=tuple(shape),
        rows=bucket,
        tile=chosen and tuple(chosen),
        microseconds=[round(1000 * each, 1) for each in times.values()],
    )


def _choose_gated(activation: str, layers: list[Float8Linear], timer: GatedTimer) -> None:
    shape = layers[0].weight.shape
    times: dict[Tile | None, float] = {}
    try:
        for tile in (None, *_GATED):
            choose_gated_tile(shape, activation, tile)
            milliseconds = timer(layers, activation)
            if milliseconds is not None:
                times[tile] = milliseconds
    finally:  # as in `_choose`
        choose_gated_tile(shape, activation, None)
    chosen = min(times, key=times.__getitem__, default=None)
    choose_gated_tile(shape, activation, chosen)
    log.info(
        "float8 gates",
        shape=tuple(shape),
        tile=chosen and tuple(chosen),
        microseconds=[round(1000 * each, 1) for each in times.values()],
    )


@torch.inference_mode()
def time_gated(layers: list[Float8Linear], activation: str) -> float | None:
    """The GatedTimer of a GPU. Raises RuntimeError."""
    layer = layers[0]
    x = torch.randn(1, layer.in_features, device=layer.weight.device).to(torch.bfloat16)
    gate, up = widened_product(layer, x).float().chunk(2, -1)
    product = partial(_gated_row, activation)
    try:
        milliseconds = time_product(product, x, layers)
        actual = product(x, layer)
    except TILE_ERRORS:
        return None
    return milliseconds if agree(actual, ACTIVATIONS[activation](gate) * up) else None


def _gated_row(activation: str, x: torch.Tensor, layer: Float8Linear) -> torch.Tensor:
    return multiply_gated_row(x, layer.weight, layer.scales, layer.bias, activation)


@torch.inference_mode()
def time_layers(layers: list[Float8Linear], rows: int) -> float | None:
    """The Timer of a GPU. Raises RuntimeError."""
    layer = layers[0]
    x = torch.randn(rows, layer.in_features, device=layer.weight.device).to(torch.bfloat16)
    product, expected = _product(x, layer)
    try:
        milliseconds = time_product(product, x, layers)
        actual = product(x, layer)
    except TILE_ERRORS:
        return None
    return milliseconds if agree(actual, expected) else None


def _product(x: torch.Tensor, layer: Float8Linear) -> tuple[Product, torch.Tensor]:
    """What is measured, and what it makes of `layer`, computed by torch in wider numbers."""
    if len(x) == 1:
        return _one_row, widened_product(layer, x)
    rows, row_scales = quantize_rows(x)
    expected = widened_product(layer, (rows.float() * row_scales).to(x.dtype))
    return partial(_several_rows, rows, row_scales), expected


def _one_row(x: torch.Tensor, layer: Float8Linear) -> torch.Tensor:
    return multiply_row(x, layer.weight, layer.scales, layer.bias)


def _several_rows(
    rows: torch.Tensor, row_scales: torch.Tensor, _: torch.Tensor, layer: Float8Linear
) -> torch.Tensor:
    return multiply_rows(rows, row_scales, layer.weight, layer.scales, layer.bias)
