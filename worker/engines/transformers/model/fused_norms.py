"""RMS norms in few operations. The library writes them as seven small ones, each of which costs a
CPU more to call than to compute, and torch's `rms_norm` is six of them. The sums are rounded
differently in the last bit.

Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, https://arxiv.org/abs/1910.07467
"""

import math
from typing import Any

import torch
from torch import nn

_EPSILON_NAMES = ("variance_epsilon", "eps")


class FusedNorm(nn.Module):
    """An RMS norm of the library."""

    def __init__(self, scale: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        features = len(scale)
        # scale * x / sqrt(|x|^2 / n + e) is sqrt(n) * scale * x / sqrt(|x|^2 + n * e)
        self._scale = scale * math.sqrt(features)
        self._least = torch.tensor(math.sqrt(features * epsilon))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        return (hidden * self._scale).div_(length.hypot_(self._least))


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
