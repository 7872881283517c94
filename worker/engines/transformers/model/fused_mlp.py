"""Gated MLPs with the projections to gates and ups as one product, whose result is activated and
multiplied as it is computed (see `linear_op`); in float8 of a single row.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from worker.engines.transformers.model import float8_linear
from worker.engines.transformers.model.fused_qkv import join, joinable, share_product
from worker.engines.transformers.model.linear_op import ACTIVATIONS, gated_linear

_NAMES = ("gate_proj", "up_proj")  # in the order of their calls
_SAMPLES = 4  # rows that the proof computes
_TOLERANCE = 2e-2  # of the largest output: bfloat16 rounds what is kept in float32 here


class FusedMLP(nn.Module):
    """Stands where an MLP with gate_proj, up_proj and down_proj stood."""

    def __init__(self, joined: nn.Linear, down_proj: nn.Module, activation: str) -> None:
        super().__init__()
        self.joined = joined  # gates first
        self.down_proj = down_proj
        self.activation = activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gated = gated_linear(hidden, self.joined.weight, self.joined.bias, self.activation)
        output: torch.Tensor = self.down_proj(gated)
        return output


class FusedFloat8MLP(nn.Module):
    """The same in float8. More rows than one are activated, and rounded for the last projection, by
    what torch.compile makes of it.
    """

    def __init__(
        self, joined: float8_linear.Float8Linear, down_proj: nn.Module, activation: str
    ) -> None:
        super().__init__()
        self.joined = joined  # gates first
        self.down_proj = down_proj
        self.activation = activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.gated(hidden))
        return output

    def gated(self, hidden: torch.Tensor) -> torch.Tensor:
        """activation(gate) * up."""
        joined = self.joined
        rows = hidden.reshape(-1, joined.in_features)
        if rows.is_cuda and rows.shape[0] == 1 and not joined.exact:
            row = float8_linear.multiply_gated_row(
                rows, joined.weight, joined.scales, joined.bias, self.activation
            )
            return row.view(*hidden.shape[:-1], row.shape[-1])
        gate, up = joined(hidden).chunk(2, dim=-1)
        return ACTIVATIONS[self.activation](gate) * up


@torch.inference_mode(mode=False)
@torch.no_grad()
def fuse_mlps(model: Any) -> int:
    """Replaces every MLP that is computed so, whatever its name. Returns how many."""
    return _replace(model, _fused)


@torch.inference_mode(mode=False)
@torch.no_grad()
def fuse_float8_mlps(model: Any) -> int:
    """The same for those in float8. Of those whose activation is not known, and which call gates
    and ups in that order, the two are one product. Returns how many of both there are.
    """
    replaced = _replace(model, _fused_float8)
    return replaced + sum(_share_float8(model.get_submodule(name)) for name in _gated_names(model))


def _replace(model: Any, fuse: Callable[[Any], nn.Module | None]) -> int:
    fused = 0
    for name in _gated_names(model):
        module = model.get_submodule(name)
        replacement = fuse(module)
        if replacement is not None:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, replacement)
            fused += 1
            del module.gate_proj, module.up_proj  # their memory, before the next one's is taken
    return fused


def _gated_names(model: Any) -> list[str]:
    """Of the modules that may be gated MLPs. Names alone: a list of modules would keep all layers
    in memory that are replaced meanwhile, which is as much as the MLPs take.
    """
    names: list[str] = []
    for name, module in model.named_modules():
        if all(hasattr(module, layer) for layer in (*_NAMES, "down_proj")):
            names.append(name)
    return names


def _fused_float8(module: Any) -> FusedFloat8MLP | None:
    """None if it is no such MLP, or does not give `module`'s answers."""
    layers: list[Any] = [getattr(module, name) for name in _NAMES]
    down: Any = module.down_proj
    activation = activation_name(module)
    if not float8_linear.joinable(layers) or not isinstance(down, nn.Module) or activation is None:
        return None
    if layers[0].weight.shape != layers[1].weight.shape:
        return None
    samples = _float8_sample(layers[0]).split((2, 1), dim=1)  # one row is computed otherwise
    expected = [_gated(module, sample) for sample in samples]
    fused = FusedFloat8MLP(float8_linear.join(layers), down, activation)
    for sample, output in zip(samples, expected, strict=True):
        if output is None or not agree(fused.gated(sample), output, _TOLERANCE):
            return None
    return fused


def _float8_sample(layer: float8_linear.Float8Linear) -> torch.Tensor:
    """[1, 3, inputs]"""
    size, device = 3 * layer.in_features, layer.weight.device
    sample = torch.linspace(-1, 1, size, dtype=torch.bfloat16, device=device)
    return sample.view(1, 3, -1)


def _share_float8(module: Any) -> bool:
    layers: list[Any] = [getattr(module, name) for name in _NAMES]
    if not float8_linear.joinable(layers) or not isinstance(module.down_proj, nn.Module):
        return False
    sample = _float8_sample(layers[0])
    expected = _gated(module, sample)
    if expected is None:
        return False
    share_product(module, _NAMES, float8_linear.join(layers))
    actual = _gated(module, sample)
    same = agree(actual, expected, _TOLERANCE)
    if not same:
        module.gate_proj, module.up_proj = layers
    return same


def _fused(module: Any) -> FusedMLP | None:
    """None if it is no such MLP, or does not give `module`'s answers."""
    layers: list[Any] = [getattr(module, name) for name in _NAMES]
    down: Any = module.down_proj
    activation = activation_name(module)
    if not joinable(layers) or not isinstance(down, nn.Module) or activation is None:
        return None
    if layers[0].weight.shape != layers[1].weight.shape:
        return None
    weight = layers[0].weight
    generator = torch.Generator(weight.device).manual_seed(1)
    shape = (1, _SAMPLES, layers[0].in_features)
    sample = torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)
    expected = _gated(module, sample)
    if expected is None:
        return None
    fused = FusedMLP(join(layers), down, activation)
    joined = fused.joined
    gated = gated_linear(sample, joined.weight, joined.bias, activation)
    return fused if agree(gated, expected, _TOLERANCE) else None


def agree(actual: torch.Tensor | None, expected: torch.Tensor | None, tolerance: float) -> bool:
    """Whether a replacement has given what the library's module gives. NaN does not agree.

    `tolerance`: a part of the largest number.
    """
    if actual is None or expected is None or actual.shape != expected.shape:
        return False
    off = (actual - expected).abs().max()
    return bool(off <= tolerance * expected.abs().max())


def _gated(module: Any, sample: torch.Tensor) -> torch.Tensor | None:
    """What the module's code makes of an input, without its last projection: that may belong to
    several processes, which would have to compute it together. None if it takes other inputs.
    """
    down, module.down_proj = module.down_proj, nn.Identity()
    try:
        output = module(sample)
    except (AttributeError, TypeError, RuntimeError):
        return None
    finally:
        module.down_proj = down
    return output if isinstance(output, torch.Tensor) else None


def activation_name(module: Any) -> str | None:
    """The name of an MLP's activation: functions and modules are called by many names."""
    function = getattr(module, "act_fn", None)
    if not callable(function):
        return None
    sample = torch.linspace(-6, 6, 101)
    try:
        expected = function(sample)
    except (TypeError, RuntimeError):
        return None
    for name, candidate in ACTIVATIONS.items():
        if torch.allclose(candidate(sample), expected, rtol=1e-5, atol=1e-6):
            return name
    return None
