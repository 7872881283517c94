"""RMS norms as one operation. The library writes them as seven small ones, each of which costs a
CPU more to call than to compute. The fused sums are rounded differently in the last bit.

Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, https://arxiv.org/abs/1910.07467
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

_EPSILON_NAMES = ("variance_epsilon", "eps")


class FusedNorm(nn.Module):
    """An RMS norm of the library."""

    def __init__(self, scale: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self._scale = scale
        self._epsilon = epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, self._scale.shape, self._scale, self._epsilon)


def fuse_norms(model: Any) -> int:
    """Replaces every module that computes an RMS norm, whatever its name. Returns how many."""
    replacements = {}
    for name, module in model.named_modules():
        fused = _fused(module)
        if fused is not None:
            replacements[name] = fused
    for name, fused in replacements.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, fused)
    return len(replacements)


def _fused(module: Any) -> FusedNorm | None:
    """The fused norm, if it gives `module`'s answer to a random input. Some architectures scale by
    the weight, some by 1 + weight.
    """
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    if not isinstance(weight, torch.Tensor) or weight.dtype != torch.float32:
        return None
    if weight.dim() != 1 or epsilon is None:
        return None
    sample = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(1))
    try:
        expected = module(sample)
    except (TypeError, RuntimeError):  # it takes other inputs
        return None
    for scale in (weight.detach(), 1.0 + weight.detach()):
        fused = FusedNorm(scale, epsilon)
        if torch.allclose(fused(sample), expected, rtol=1e-5, atol=1e-6):
            return fused
    return None


def _epsilon(module: Any) -> float | None:
    for name in _EPSILON_NAMES:
        epsilon = getattr(module, name, None)
        if isinstance(epsilon, float):
            return epsilon
    return None
