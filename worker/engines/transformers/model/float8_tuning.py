"""How the few rows of a decoding step are divided among a GPU's programs where weights are float8:
the fastest of some tiles for each size of layer, as measured once when the model is loaded.
"""

from collections import defaultdict
from typing import Any

import structlog
import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from worker.engines.transformers.model.float8 import FLOAT8
from worker.engines.transformers.model.float8_linear import Float8Linear, multiply_few_rows
from worker.engines.transformers.model.linear_op import choose_tile
from worker.engines.transformers.model.linear_tiles import ROW_BUCKETS, LinearKey, Tile
from worker.engines.transformers.model.linear_tuning import time_product

log = structlog.get_logger(__name__)

# A byte is half of what `linear_tiles` counts with, so as many bytes are twice the inputs.
_CANDIDATES = {
    1: (Tile(16, 512, 1, 4, 4), Tile(32, 512, 1, 4, 4), Tile(32, 256, 1, 4, 4)),
    16: (Tile(32, 256, 1, 4, 4), Tile(32, 512, 1, 4, 4), Tile(32, 256, 2, 4, 4)),
    32: (Tile(32, 256, 1, 4, 4), Tile(64, 256, 1, 4, 4), Tile(64, 256, 4, 4, 4)),
    64: (Tile(64, 128, 4, 4, 4), Tile(64, 256, 1, 4, 3), Tile(128, 64, 4, 8, 5, "swapped")),
}


def tune(model: Any, slots: int) -> int:
    """Chooses a tile for each size of layer and number of rows that decode. Returns how many layers
    there are.
    """
    layers: dict[torch.Size, list[Float8Linear]] = defaultdict(list)
    for module in model.modules():
        if type(module) is Float8Linear:
            layers[module.weight.shape].append(module)
    for shape, alike in layers.items():
        for before, bucket in zip((0, *ROW_BUCKETS), ROW_BUCKETS, strict=False):
            if before < slots:
                _choose(LinearKey(shape, FLOAT8, ""), bucket, alike)
    return sum(len(alike) for alike in layers.values())


def _choose(key: LinearKey, bucket: int, layers: list[Float8Linear]) -> None:
    x = torch.randn(bucket, key.shape[1], device=layers[0].weight.device).to(torch.bfloat16)
    times: dict[Tile, float] = {}
    for tile in _CANDIDATES[bucket]:
        choose_tile(key, bucket, tile)
        try:
            times[tile] = time_product(_product, x, layers)
        except (OutOfResources, CompilationError):  # not on this GPU
            continue
    chosen = min(times, key=times.__getitem__, default=None)
    choose_tile(key, bucket, chosen)
    log.info(
        "float8 layer",
        shape=tuple(key.shape),
        rows=bucket,
        tile=chosen,
        microseconds={tuple(tile): round(1000 * time, 1) for tile, time in times.items()},
    )


def _product(x: torch.Tensor, layer: Float8Linear) -> torch.Tensor:
    return multiply_few_rows(x, layer.weight, layer.scales, layer.bias)
