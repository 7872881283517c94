"""One product for gates and ups."""

import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.unit.engine.tiny import CONFIGS
from worker.engines.transformers.model import float8_linear, fused_mlp
from worker.engines.transformers.model.float8_linear import exact_products, from_linear
from worker.engines.transformers.model.fused_mlp import (
    FusedFloat8MLP,
    FusedMLP,
    fuse_float8_mlps,
    fuse_mlps,
)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma3"])
def test_a_fused_model_says_the_same(kind: str) -> None:
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    ids = torch.randint(0, 259, (2, 9))
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        assert fuse_mlps(model) == model.config.num_hidden_layers
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)


def test_what_is_no_gated_mlp_is_left_alone() -> None:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["gpt2"]())
    assert fuse_mlps(model) == 0


class Gated(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 12), nn.Linear(8, 12)
        self.down_proj, self.act_fn = nn.Linear(12, 8), nn.SiLU()
        self._factor = factor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gated = self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden)
        output: torch.Tensor = self.down_proj(gated) * self._factor
        return output


def test_a_module_that_computes_something_else_is_left_alone() -> None:
    model = nn.ModuleList([Gated(1.0), Gated(1.5)])
    assert fuse_mlps(model) == 1
    assert isinstance(model[0], FusedMLP)
    assert isinstance(model[1], Gated)


@pytest.mark.parametrize("float8", [False, True])
def test_layers_are_freed_as_they_are_joined(float8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The KV cache has what memory there was: all gates and ups beside their copies have none."""
    model: Any = nn.ModuleList([Gated(1.0) for _ in range(4)])
    if float8:
        for mlp in model:
            mlp.bfloat16()
            for name in ("gate_proj", "up_proj"):
                setattr(mlp, name, from_linear(getattr(mlp, name)))
    layers = [(weakref.ref(mlp.gate_proj), weakref.ref(mlp.up_proj)) for mlp in model]
    complete: list[int] = []
    gated = fused_mlp._gated

    def counting(module: Any, sample: torch.Tensor) -> torch.Tensor | None:
        complete.append(sum(all(layer() is not None for layer in pair) for pair in layers))
        return gated(module, sample)

    monkeypatch.setattr(fused_mlp, "_gated", counting)
    assert (fuse_float8_mlps if float8 else fuse_mlps)(model) == 4
    before_each = complete[::2] if float8 else complete
    assert before_each == [4, 3, 2, 1]
    assert all(layer() is None for pair in layers for layer in pair)


@pytest.mark.parametrize(("activation", "known"), [(nn.SiLU(), True), (nn.Tanh(), False)])
@torch.no_grad()
def test_a_float8_mlp_says_the_same(activation: nn.Module, known: bool) -> None:
    """Of one row and of several; with an activation that the kernels do not know, too."""
    torch.manual_seed(1)
    model: Any = nn.ModuleList([Gated(1.0).bfloat16()])
    model[0].act_fn = activation
    for name in ("gate_proj", "up_proj"):
        setattr(model[0], name, from_linear(getattr(model[0], name)))
    inputs = [torch.randn(shape).bfloat16() for shape in ((1, 1, 8), (1, 5, 8), (3, 8))]
    expected = [model[0](rows) for rows in inputs]
    assert fuse_float8_mlps(model) == 1
    assert isinstance(model[0], FusedFloat8MLP) == known
    for rows, output in zip(inputs, expected, strict=True):
        torch.testing.assert_close(model[0](rows), output, rtol=2e-2, atol=2e-2)
    compiled = torch.compile(model[0], dynamic=True, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs[1]), expected[1], rtol=2e-2, atol=2e-2)


@torch.no_grad()
def test_one_row_of_a_float8_mlp_is_one_kernel_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not where inputs must not be rounded, as the model is proved."""
    mlp = FusedFloat8MLP(from_linear(nn.Linear(8, 24).bfloat16()), nn.Identity(), "silu")
    taken: list[str] = []

    def kernel(row: torch.Tensor, weight: torch.Tensor, *more: Any) -> torch.Tensor:
        taken.append(more[-1])
        return row.new_zeros(1, len(weight) // 2)

    class OnGPU(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(float8_linear, "multiply_gated_row", kernel)
    row = torch.ones(1, 1, 8).bfloat16().as_subclass(OnGPU)
    assert mlp(row).shape == (1, 1, 12)
    assert taken == ["silu"]
    with exact_products(mlp):
        mlp(row)
    assert taken == ["silu"]


class Divided(nn.Linear):
    """Whose outputs several processes add up."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the other processes do not compute it now")


def test_the_proof_needs_no_other_process() -> None:
    model = nn.ModuleList([Gated(1.0)])
    model[0].down_proj = down = Divided(12, 8)
    assert fuse_mlps(model) == 1
    assert model[0].down_proj is down


def test_an_unknown_activation_is_left_alone() -> None:
    model = nn.ModuleList([Gated(1.0)])
    model[0].act_fn = nn.Tanh()
    assert fuse_mlps(model) == 0


def test_a_fused_mlp_compiles_for_any_number_of_rows() -> None:
    model = nn.ModuleList([Gated(1.0)])
    inputs = [torch.randn(1, rows, 8) for rows in (5, 7)]
    expected = [model[0](rows) for rows in inputs]
    fuse_mlps(model)
    compiled = torch.compile(model[0], dynamic=True, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for rows, output in zip(inputs, expected, strict=True):
            torch.testing.assert_close(compiled(rows), output)
