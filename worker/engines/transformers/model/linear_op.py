"""The linear layers of a GPU as torch operators, which the compiler leaves as they are and a CUDA
graph records: by a Triton kernel where it was measured to be faster for so many rows, else by
torch. The number of rows is known when an operator runs, so each graph has what suits its own.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from worker.engines.transformers.model.linear_tiles import LinearKey, Tile, bucket_of

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


# Of this process, as measured. The compiled layers do not depend on it, so another choice at the
# next start compiles nothing again.
_tiles: dict[tuple[LinearKey, int], Tile] = {}


def choose_tile(key: LinearKey, bucket: int, tile: Tile) -> None:
    """From now on a product of up to `bucket` rows, and more than the bucket before, takes it."""
    _tiles[key, bucket] = tile


def clear_tiles() -> None:
    """From now on all products are torch's."""
    _tiles.clear()


@torch.library.custom_op("canopy::linear", mutates_args=())
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + bias, as torch.nn.functional.linear."""
    flat = x.reshape(-1, x.shape[-1])
    result = _by_triton(flat, weight, bias, "")
    if result is None:
        result = functional.linear(flat, weight, bias)
    return result.view(*x.shape[:-1], weight.shape[0])


@linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("canopy::gated_linear", mutates_args=())
def gated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """activation(gate) * up [..., N] of the product with `weight` [2 N, K], gates first."""
    flat = x.reshape(-1, x.shape[-1])
    result = _by_triton(flat, weight, bias, activation)
    if result is None:
        result = _gated(flat, weight, bias, activation)
    return result.view(*x.shape[:-1], weight.shape[0] // 2)


@gated_linear.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2))


def _by_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor | None:
    """None where torch is to compute it."""
    bucket = bucket_of(len(x))
    if not _tiles or bucket is None:
        return None
    tile = _tiles.get((LinearKey(weight.shape, weight.dtype, activation), bucket))
    if tile is None or not x.is_cuda or x.stride(-1) != 1:
        return None
    from worker.engines.transformers.model import triton_linear

    return triton_linear.linear(x, weight, bias=bias, activation=activation, tile=tile)


def _gated(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """By two products: cuBLAS is slower at one of twice the size, from 128 rows on."""
    weights, biases = weight.chunk(2), (None, None) if bias is None else bias.chunk(2)
    gate, up = (functional.linear(x, *factor) for factor in zip(weights, biases, strict=True))
    if gate.is_cuda:
        from worker.engines.transformers.model import triton_linear

        return triton_linear.activate(gate, up, activation)
    return ACTIVATIONS[activation](gate) * up
