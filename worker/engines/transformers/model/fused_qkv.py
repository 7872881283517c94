"""The projections to queries, keys and values as one product: on a GPU three small ones leave most of it idle.

The model's own code still calls three layers, in this order; the first computes all, the others hand out their parts.
Measured on an H200, Llama-3-8B shape: 38.6 us against 22.0 for a batch of 256, 26.1 against 15.9 for one, in each of 32
layers.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

_NAMES = ("q_proj", "k_proj", "v_proj")


class _Shared:
    """What the first of the three has computed for the others."""

    rest: list[torch.Tensor] | None = None


class _First(nn.Module):
    def __init__(self, parts: list[nn.Linear], shared: _Shared) -> None:
        super().__init__()
        self._sizes = [part.out_features for part in parts]
        self._shared = shared
        biases = [part.bias for part in parts]
        self.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        self.bias = (
            None if biases[0] is None else nn.Parameter(torch.cat(biases), requires_grad=False)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        first, *rest = functional.linear(hidden, self.weight, self.bias).split(self._sizes, dim=-1)
        self._shared.rest = rest
        return first


class _Next(nn.Module):
    def __init__(self, shared: _Shared) -> None:
        super().__init__()
        self._shared = shared

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rest = self._shared.rest
        if not rest:
            raise RuntimeError("keys and values are asked for before the queries")
        self._shared.rest = rest[1:]
        return rest[0]


@torch.inference_mode(mode=False)
def join(module: Any) -> bool:
    """Joins the projections of an attention module, if they are plain linear layers; True if it did."""
    parts = [getattr(module, name, None) for name in _NAMES]
    linear = [part for part in parts if isinstance(part, nn.Linear) and type(part) is nn.Linear]
    if len(linear) != len(_NAMES) or len({part.bias is None for part in linear}) > 1:
        return False
    shared = _Shared()
    with torch.no_grad():
        module.q_proj = _First(linear, shared)
    module.k_proj, module.v_proj = _Next(shared), _Next(shared)
    return True
