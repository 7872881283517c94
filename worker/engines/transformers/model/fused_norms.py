"""RMS norms as one operation: the library writes them out as seven small ones, each of which costs a CPU more to call
than to compute. Their sums are rounded otherwise then, in the last bit.

Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, https://arxiv.org/abs/1910.07467
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

_EPSILONS = ("variance_epsilon", "eps")  # what architectures call it


class FusedNorm(nn.Module):
    """What a norm of the library computes."""

    def __init__(self, scale: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self._scale = scale
        self._epsilon = epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, self._scale.shape, self._scale, self._epsilon)


def fuse_norms(model: Any) -> int:
    """Replaces those norms that prove to be RMS norms, whatever their names; returns how many."""
    found = {
        name: fused
        for name, module in model.named_modules()
        if (fused := _fused(module)) is not None
    }
    for name, fused in found.items():
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, fused)
    return len(found)


def _fused(module: Any) -> FusedNorm | None:
    """The same as one operation, if `module` answers a random input so. Some multiply by their weights, some by 1 more
    than them.
    """
    weight = getattr(module, "weight", None)
    epsilon = next(
        (value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)),
        None,
    )
    if (
        not isinstance(weight, torch.Tensor)
        or weight.dim() != 1
        or weight.dtype != torch.float32
        or epsilon is None
    ):
        return None
    sample = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(1))
    try:
        wanted = module(sample)
    except (TypeError, RuntimeError):  # it takes something else
        return None
    for scale in (weight.detach(), 1.0 + weight.detach()):
        fused = FusedNorm(scale, epsilon)
        if torch.allclose(fused(sample), wanted, rtol=1e-5, atol=1e-6):
            return fused
    return None
