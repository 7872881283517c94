"""The divided layers of a shard as plain modules of local tensors.

transformers wraps each divided layer in a function that turns tensors into DTensors and back, which
torch.compile and `fuse_qkv` do not see through, and which costs the host more than the layer. What
the plan asks of a linear layer is little: its outputs are divided (nothing to do), its inputs are
(a sum follows), or its outputs are and everyone needs all of them (a gather follows).

Shoeybi et al., Megatron-LM, 2019, https://arxiv.org/abs/1909.08053
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from worker.engines.transformers.tensor_parallel.collectives import (
    gather_over_ranks,
    sum_over_ranks,
)
from worker.engines.transformers.tensor_parallel.peer_memory import PeerMemory

_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class _Summed(nn.Module):
    """A layer that every rank computes a part of."""

    def __init__(self, memory: PeerMemory) -> None:
        super().__init__()
        self.register_buffer("_addresses", memory.addresses, persistent=False)
        self.register_buffer("_counts", memory.counts, persistent=False)
        self._capacity, self._dtype = memory.capacity, memory.dtype

    def _sum(self, part: torch.Tensor) -> torch.Tensor:
        capacity = self._capacity if part.dtype == self._dtype else 0
        total: torch.Tensor = sum_over_ranks(part, self._addresses, self._counts, capacity)
        return total


class SummedLinear(_Summed):
    """A linear layer whose inputs are divided among the ranks."""

    def __init__(self, layer: nn.Linear, memory: PeerMemory) -> None:
        super().__init__(memory)
        self.product = _local_linear(layer, bias=False)
        self.bias = _local(layer.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        total = self._sum(self.product(hidden))
        return total if self.bias is None else total + self.bias


class GatheredLinear(nn.Module):
    """A linear layer whose outputs are divided, and gathered. The last rank may have fewer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.product = _local_linear(layer, bias=True)
        self._size = layer.out_features
        rows = self.product.out_features
        self._padding = -(-self._size // torch.distributed.get_world_size()) - rows

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        outputs = self.product(hidden)
        if self._padding:
            outputs = functional.pad(outputs, (0, self._padding))
        return gather_over_ranks(outputs)[..., : self._size]


class SummedEmbedding(_Summed):
    """An embedding whose rows are divided: all but one rank add zeros."""

    def __init__(self, layer: nn.Embedding, memory: PeerMemory) -> None:
        super().__init__(memory)
        self.weight = _local(layer.weight)
        rows = -(-layer.num_embeddings // torch.distributed.get_world_size())
        self._first = rows * torch.distributed.get_rank()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = ids - self._first
        elsewhere = (rows < 0) | (rows >= len(self.weight))
        hidden = functional.embedding(rows.masked_fill(elsewhere, 0), self.weight)
        return self._sum(hidden.masked_fill(elsewhere[..., None], 0))


def use_local_layers(model: Any, memory: PeerMemory) -> int:
    """Replaces every divided layer that is a plain one, by the model's plan; others stay as
    transformers made them. Returns how many.
    """
    replacements: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        style = model.tp_plan.get(_LAYER_NUMBER.sub("*", name), "")
        replacement = _replacement(module, style, memory)
        if replacement is not None:
            replacements[name] = replacement
    for name, replacement in replacements.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, replacement)
    return len(replacements)


def _replacement(module: nn.Module, style: str, memory: PeerMemory) -> nn.Module | None:
    if not isinstance(getattr(module, "weight", None), DTensor):
        return None
    makers: dict[tuple[type, str], Callable[[Any], nn.Module]] = {
        (nn.Linear, "colwise"): lambda layer: _local_linear(layer, bias=True),
        (nn.Linear, "rowwise"): lambda layer: SummedLinear(layer, memory),
        (nn.Linear, "colwise_gather_output"): GatheredLinear,
        (nn.Embedding, "embedding_rowwise"): lambda layer: SummedEmbedding(layer, memory),
    }
    maker = makers.get((type(module), style))
    return maker(module) if maker is not None else None


def _local_linear(layer: nn.Linear, *, bias: bool) -> nn.Linear:
    weight = _local(layer.weight)
    with torch.device("meta"):
        local = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    local.weight = weight
    if bias:
        local.bias = _local(layer.bias)
    return local


def _local(parameter: Any) -> Any:
    """This rank's part of it; None of None."""
    if parameter is None:
        return None
    values = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return nn.Parameter(values.detach(), requires_grad=False)
