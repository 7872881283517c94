"""Which linear layers of a GPU's model are computed by `triton_linear`, for how many rows: those
that it computes faster than cuBLAS here, as measured once when the model is loaded.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
import torch
from torch import nn
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from worker.engines.transformers.model.float8_linear import Float8Linear
from worker.engines.transformers.model.fused_mlp import FusedMLP
from worker.engines.transformers.model.linear_op import choose_tile, gated_linear, linear
from worker.engines.transformers.model.linear_tiles import (
    CANDIDATES,
    ROW_BUCKETS,
    LinearKey,
    Tile,
)

log = structlog.get_logger(__name__)

_STREAMED_BYTES = 256 << 20  # of weights that a measurement reads, more than a L2 cache holds
_MAX_CALLS = 32
_ROUNDS = 5
_GAIN = 1.02  # less is noise
_ALIGNMENT = 16  # elements; what is not aligned so is read slowly
_DTYPES = (torch.bfloat16, torch.float16)

Layer = TypeVar("Layer", nn.Linear, Float8Linear)
Product = Callable[[torch.Tensor, nn.Linear], torch.Tensor]


class StreamedLinear(nn.Module):
    """Stands where a linear layer stood."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden, self.weight, self.bias)


def tune_linears(model: Any, slots: int) -> int:
    """Measures the model's linear layers and replaces those that gain. Returns how many."""
    gated = {}
    for module in model.modules():
        if isinstance(module, FusedMLP):
            gated[module.joined] = module.activation
    layers: dict[LinearKey, dict[str, nn.Linear]] = defaultdict(dict)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and _streamable(module):
            key = LinearKey(module.weight.shape, module.weight.dtype, gated.get(module, ""))
            layers[key][name] = module
    replaced = 0
    for key, named in layers.items():
        faster = _choose(key, list(named.values()), slots)
        if faster and not key.activation:  # FusedMLP has the operator already
            for name, layer in named.items():
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, StreamedLinear(layer))
        replaced += len(named) if faster else 0
    return replaced


def _streamable(layer: nn.Linear) -> bool:
    weight = layer.weight
    aligned = weight.is_contiguous() and weight.shape[1] % _ALIGNMENT == 0
    return weight.is_cuda and weight.dtype in _DTYPES and aligned


def _choose(key: LinearKey, layers: list[nn.Linear], slots: int) -> bool:
    """Chooses a tile for each number of rows that decode. False if none is faster than torch."""
    product = _product(key)
    faster = False
    for before, bucket in zip((0, *ROW_BUCKETS), ROW_BUCKETS, strict=False):
        if before >= slots:
            break
        x = torch.randn(bucket, key.shape[1], device=layers[0].weight.device).to(key.dtype)
        choose_tile(key, bucket, None)
        plain = best = time_product(product, x, layers)
        chosen = None
        for tile in _candidates(key, bucket):
            choose_tile(key, bucket, tile)
            try:
                seconds = time_product(product, x, layers)
            except (OutOfResources, CompilationError):  # not on this GPU
                continue
            if seconds * _GAIN < min(plain, best * _GAIN):
                best, chosen = seconds, tile
        choose_tile(key, bucket, chosen)
        faster = faster or chosen is not None
        log.info(
            "linear layer",
            shape=tuple(key.shape),
            rows=bucket,
            tile=chosen,
            gain=round(plain / best, 3),
        )
    return faster


def _candidates(key: LinearKey, bucket: int) -> list[Tile]:
    """A gated product is not split."""
    tiles = list(CANDIDATES[bucket])
    if key.activation:
        tiles = [tile._replace(split=1) for tile in tiles]
    return list(dict.fromkeys(tiles))


def _product(key: LinearKey) -> Product:
    if key.activation:
        return lambda x, layer: gated_linear(x, layer.weight, layer.bias, key.activation)
    return lambda x, layer: linear(x, layer.weight, layer.bias)


def time_product(
    product: Callable[[torch.Tensor, Layer], torch.Tensor], x: torch.Tensor, layers: list[Layer]
) -> float:
    """Milliseconds of a product, in a CUDA graph over the weights of several layers, as a step
    reads them: none is still in a cache.
    """
    count = max(1, min(len(layers), _MAX_CALLS, _STREAMED_BYTES // layers[0].weight.nbytes + 1))
    product(x, layers[0])  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # other threads may use the GPU meanwhile: NCCL's do, where several share a model
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        kept = [product(x, layer) for layer in layers[:count]]
    graph.replay()
    times = []
    for _ in range(_ROUNDS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / count)
    del kept
    return statistics.median(times)
