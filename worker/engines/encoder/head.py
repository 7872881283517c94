"""From the hidden states of a text's tokens to its vector, or to its score.

The modules of the sentence-transformers library that its published models have, read from the same
files. The library itself is not used here: it encodes a whole list at a time, so that requests
could not share batches, and it brings scipy and scikit-learn. The tests compare with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.engines.base import EngineUnavailable

_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "Identity": nn.Identity,
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
}


@dataclass(frozen=True, slots=True)
class Mask:
    """Which hidden states are pooled. `lengths`: tokens of each text; `prompts`: of them, to be
    left out.

    Hidden states are of float32: texts, tokens, features. Texts are padded at their ends.
    """

    lengths: Tensor
    prompts: Tensor

    def of(self, hidden: Tensor) -> Tensor:
        """1.0 for tokens that count, else 0.0; the last dimension is for the features."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        counts = (positions >= self.prompts[:, None]) & (positions < self.lengths[:, None])
        return counts.unsqueeze(-1).to(hidden.dtype)


def _cls(hidden: Tensor, mask: Mask) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.prompts]


def _last(hidden: Tensor, mask: Mask) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.lengths - 1]


def _max(hidden: Tensor, mask: Mask) -> Tensor:
    return hidden.masked_fill(mask.of(hidden) == 0, float("-inf")).max(dim=1).values


def _sum(hidden: Tensor, weights: Tensor) -> Tensor:
    """Padding may hold NaN, which times zero is NaN: it is set to zero first."""
    return (hidden.masked_fill(weights == 0, 0.0) * weights).sum(dim=1)


def _mean(hidden: Tensor, mask: Mask) -> Tensor:
    counts = mask.of(hidden)
    return _sum(hidden, counts) / counts.sum(dim=1)


def _mean_sqrt(hidden: Tensor, mask: Mask) -> Tensor:
    counts = mask.of(hidden)
    return _sum(hidden, counts) / counts.sum(dim=1).sqrt()


def _weighted_mean(hidden: Tensor, mask: Mask) -> Tensor:
    """Later tokens count more: each one's weight is its position, from 1."""
    positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=hidden.dtype)
    weights = mask.of(hidden) * positions[None, :, None]
    return _sum(hidden, weights) / weights.sum(dim=1)


POOLINGS: dict[str, Callable[[Tensor, Mask], Tensor]] = {
    "cls": _cls,
    "lasttoken": _last,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
}


def pooling_modes(config: dict[str, Any]) -> tuple[str, ...]:
    """Those of a 1_Pooling/config.json, in the order of their parts of the vector. Raises
    EngineUnavailable.
    """
    chosen = config.get("pooling_mode")
    if chosen is None:
        chosen = [mode for key, mode in _LEGACY_MODES.items() if config.get(key)] or ["mean"]
    modes = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    for mode in modes:
        if mode not in POOLINGS:
            raise EngineUnavailable(f"the pooling mode {mode!r} is not known")
    return modes


def pool(hidden: Tensor, mask: Mask, modes: tuple[str, ...]) -> Tensor:
    """A vector a text; those of several modes are joined."""
    return torch.cat([POOLINGS[mode](hidden, mask) for mode in modes], dim=-1)


def activation(path: str) -> nn.Module:
    """Of a class of torch.nn, by its dotted path: nothing else is imported. Raises
    EngineUnavailable.
    """
    name = path.rpartition(".")[2]
    if not path.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise EngineUnavailable(f"the activation function {path!r} is not known")
    return ACTIVATIONS[name]()


class Dense(nn.Module):
    """A layer behind the pooling, as a 2_Dense folder has it."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Raises EngineUnavailable."""
        super().__init__()
        for name in ("module_input_name", "module_output_name"):
            if config.get(name) not in {None, "sentence_embedding"}:
                raise EngineUnavailable(f"a dense module with {name} {config[name]!r} is not known")
        if config.get("use_residual"):
            raise EngineUnavailable("a dense module with a residual is not known")
        bias = weights.get("linear.bias")
        self.linear = nn.Linear(config["in_features"], config["out_features"], bias is not None)
        state = {"weight": weights["linear.weight"].float()}
        if bias is not None:
            state["bias"] = bias.float()
        self.linear.load_state_dict(state)
        self.activation = activation(config.get("activation_function", "torch.nn.Tanh"))

    def forward(self, vectors: Tensor) -> Tensor:
        """As nn.Module's."""
        activated: Tensor = self.activation(self.linear(vectors))
        return activated


class Normalize(nn.Module):
    """To unit length."""

    def forward(self, vectors: Tensor) -> Tensor:
        """As nn.Module's."""
        return nn.functional.normalize(vectors, dim=-1)
