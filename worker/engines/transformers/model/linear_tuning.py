"""Which linear layers of a GPU's model are computed by `triton_linear`, for how many rows: those
that it computes faster than cuBLAS here, as measured once when the model is loaded.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog
import torch
from torch import nn
from triton.compiler.errors import CompilationError
from triton.errors import TritonError
from triton.runtime.errors import OutOfResources, PTXASError

from worker.engines.transformers.model import triton_linear
from worker.engines.transformers.model.float8_linear import Float8Linear
from worker.engines.transformers.model.fused_mlp import FusedMLP
from worker.engines.transformers.model.linear_op import (
    choose_tile,
    clear_tiles,
    gated_linear,
    linear,
)
from worker.engines.transformers.model.linear_tiles import (
    LinearKey,
    Tile,
    candidates,
    measured_buckets,
)

log = structlog.get_logger(__name__)

LIMIT = 30.0  # seconds for all: what is not measured by then stays with torch
TILE_ERRORS = (OutOfResources, CompilationError, PTXASError)  # a tile is not for this GPU
PRODUCT_ERRORS = (RuntimeError, TritonError)  # what a product may raise: torch's and Triton's
_STREAMED_BYTES = 256 << 20  # of weights that a measurement reads, more than a L2 cache holds
_MIN_CALLS, _MAX_CALLS = 12, 32  # of a measurement, so that its beginning and end count little
_ROUNDS = 7
_GAIN = 1.01  # less is noise
_TOLERANCE = 2e-2  # of the largest output: bfloat16 rounds, in another order of summation
_ALIGNMENT = 16  # elements; what is not aligned so is read slowly
_DTYPES = (torch.bfloat16, torch.float16)

Layer = TypeVar("Layer", nn.Linear, Float8Linear)
# Milliseconds of a product with layers of a kind, of so many rows, by a tile or by torch; None: the
# GPU cannot.
Timer = Callable[[LinearKey, list[nn.Linear], int, Tile | None], float | None]


class StreamedLinear(nn.Module):
    """Stands where a linear layer stood."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden, self.weight, self.bias)


def tune_linears(
    model: Any,
    slots: int,
    *,
    timer: Timer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Measures the model's linear layers and replaces those that gain. Returns how many. Raises
    RuntimeError, torch's; what was replaced computes as before then.
    """
    clear_tiles()
    deadline = clock() + LIMIT
    heads = _output_layers(model)
    replaced = 0
    for key, named in _kinds(model).items():
        layers = list(named.values())
        buckets = measured_buckets(slots, logits=any(layer in heads for layer in layers))
        chosen = _choose(key, layers, buckets, timer or time_tile, clock, deadline)
        for bucket, tile in chosen.items():
            choose_tile(key, bucket, tile)
        if chosen:
            replaced += len(named)
            _replace(model, key, named)
    return replaced


def _kinds(model: Any) -> dict[LinearKey, dict[str, nn.Linear]]:
    """The layers that may gain, by name."""
    gated = {}
    for module in model.modules():
        if isinstance(module, FusedMLP):
            gated[module.joined] = module.activation
    kinds: dict[LinearKey, dict[str, nn.Linear]] = defaultdict(dict)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and _streamable(module.weight):
            key = LinearKey(module.weight.shape, module.weight.dtype, gated.get(module, ""))
            kinds[key][name] = module
    return kinds


def _output_layers(model: Any) -> set[nn.Module]:
    """What computes logits; among several processes a layer within another."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return set() if head is None else set(head.modules())


def _streamable(weight: torch.Tensor) -> bool:
    aligned = weight.is_contiguous() and weight.shape[1] % _ALIGNMENT == 0
    return weight.dtype in _DTYPES and aligned


def _replace(model: Any, key: LinearKey, named: dict[str, nn.Linear]) -> None:
    if key.activation:
        return  # FusedMLP has the operator already
    for name, layer in named.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, StreamedLinear(layer))


def _choose(
    key: LinearKey,
    layers: list[nn.Linear],
    buckets: Sequence[int],
    timer: Timer,
    clock: Callable[[], float],
    deadline: float,
) -> dict[int, Tile]:
    """By bucket of rows, where one is faster than torch."""
    chosen, gains = {}, {}
    for bucket in buckets:
        tiles = candidates(key, bucket)
        if clock() >= deadline:
            log.warning("linear layers are not measured any longer", seconds=LIMIT)
            break
        measure = partial(timer, key, layers, bucket)
        first = measure(None)
        times = {tile: measure(tile) for tile in tiles}
        again = measure(None)  # cuBLAS is now faster, now slower, and a step meets it as it is
        if first is None or again is None:
            continue
        tile, gain = fastest((first + again) / 2, times)
        if tile is not None:
            chosen[bucket], gains[bucket] = tile, round(gain, 3)
    log.info("linear layers", shape=tuple(key.shape), count=len(layers), faster=gains)
    return chosen


def fastest(plain: float, times: dict[Tile, float | None]) -> tuple[Tile | None, float]:
    """The tile to take, and how many times as fast as torch it is; None: torch's product."""
    measured = {tile: value for tile, value in times.items() if value is not None}
    if not measured:
        return None, 1.0
    tile = min(measured, key=measured.__getitem__)
    gain = plain / measured[tile]
    return (tile, gain) if gain >= _GAIN else (None, 1.0)


@torch.inference_mode()
def time_tile(
    key: LinearKey, layers: list[nn.Linear], rows: int, tile: Tile | None
) -> float | None:
    """The Timer of a GPU, which also finds a tile's answers equal to torch's. Raises
    RuntimeError.
    """
    weight = layers[0].weight
    x = torch.randn(rows, weight.shape[1], device=weight.device).to(weight.dtype)
    product, plain = (
        partial(_product, key.activation, tile),
        partial(_product, key.activation, None),
    )
    try:
        milliseconds = time_product(product, x, layers)
    except TILE_ERRORS:
        return None
    return milliseconds if agree(product(x, layers[0]), plain(x, layers[0])) else None


def agree(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether they differ by rounding alone. NaN does not agree."""
    off = (actual.float() - expected.float()).abs().max()
    return bool(off <= _TOLERANCE * expected.abs().max())


def _product(activation: str, tile: Tile | None, x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    weight, bias = layer.weight, layer.bias
    if tile is not None:
        return triton_linear.linear(x, weight, bias=bias, activation=activation, tile=tile)
    if activation:
        return gated_linear(x, weight, bias, activation)
    return linear(x, weight, bias)


@torch.inference_mode()
def time_product(
    product: Callable[[torch.Tensor, Layer], torch.Tensor], x: torch.Tensor, layers: list[Layer]
) -> float:
    """Milliseconds of a product, in a CUDA graph over the weights of several layers, as a step
    reads them: none is still in a cache. Raises RuntimeError.
    """
    count = max(1, min(len(layers), _MAX_CALLS, _STREAMED_BYTES // layers[0].weight.nbytes + 1))
    streamed = layers[:count] * -(-_MIN_CALLS // count)
    product(x, layers[0])  # compiles
    torch.cuda.synchronize(x.device)
    graph = torch.cuda.CUDAGraph()
    # other threads may use the GPU meanwhile: NCCL's do, where several share a model
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = [product(x, layer) for layer in streamed]
    times = []
    for _ in range(1 + _ROUNDS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / len(streamed))
    del outputs  # the graph's memory, until here
    return statistics.median(times[1:])  # the first one may have met a GPU at rest
