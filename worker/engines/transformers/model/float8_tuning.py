"""How the rows of a decoding step are divided among a GPU's programs where weights are float8: the
fastest of some tiles, or torch's own product, for each size of layer, as measured once when the
model is loaded.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import structlog
import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from worker.engines.transformers.model.float8 import quantize_rows
from worker.engines.transformers.model.float8_linear import (
    ROW_BUCKETS,
    Float8Linear,
    choose_tile,
    multiply_row,
    multiply_rows,
)
from worker.engines.transformers.model.linear_tiles import Tile
from worker.engines.transformers.model.linear_tuning import time_product

log = structlog.get_logger(__name__)

Product = Callable[[torch.Tensor, Float8Linear], torch.Tensor]
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


def tune(model: Any, slots: int) -> int:
    """Chooses how layers of each size compute each number of rows that decode. Returns how many
    layers there are.
    """
    layers: dict[torch.Size, list[Float8Linear]] = defaultdict(list)
    for module in model.modules():
        if type(module) is Float8Linear:
            layers[module.weight.shape].append(module)
    for shape, alike in layers.items():
        for before, bucket in zip((0, *ROW_BUCKETS), ROW_BUCKETS, strict=False):
            if before < slots:
                _choose(shape, bucket, alike)
    return sum(len(alike) for alike in layers.values())


def _choose(shape: torch.Size, bucket: int, layers: list[Float8Linear]) -> None:
    x = torch.randn(bucket, shape[1], device=layers[0].weight.device).to(torch.bfloat16)
    product, candidates = _product(x), list[Tile | None](_CANDIDATES[bucket])
    if bucket > 1:
        candidates.insert(0, None)
    times: dict[Tile | None, float] = {}
    for tile in candidates:
        choose_tile(shape, bucket, tile)
        try:
            times[tile] = time_product(product, x, layers)
        except (OutOfResources, CompilationError):  # not on this GPU
            continue
        except RuntimeError:  # it ends the tuning, and must not stay chosen
            choose_tile(shape, bucket, None)
            raise
    chosen = min(times, key=times.__getitem__, default=None)
    choose_tile(shape, bucket, chosen)
    log.info(
        "float8 layer",
        shape=tuple(shape),
        rows=bucket,
        tile=chosen and tuple(chosen),
        microseconds=[round(1000 * time, 1) for time in times.values()],
    )


def _product(x: torch.Tensor) -> Product:
    if len(x) == 1:
        return lambda x, layer: multiply_row(x, layer.weight, layer.scales, layer.bias)
    rows, row_scales = quantize_rows(x)
    return lambda _, layer: multiply_rows(rows, row_scales, layer.weight, layer.scales, layer.bias)
