"""Linear layers in float8: their error, rows apart from each other, and what a GPU is told."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.unit.engine.tiny import CONFIGS, tokenizer
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import float8_linear, gpu_precision
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.float8 import FLOAT8, quantize_rows, round_to_float8
from worker.engines.transformers.model.float8_linear import (
    Float8Linear,
    from_linear,
    join,
)
from worker.engines.transformers.model.fused_mlp import fuse_float8_mlps
from worker.engines.transformers.model.fused_qkv import fuse_qkv
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.probe import create_runner
from worker.engines.transformers.model.runner import LocalModelRunner

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_PRECISION", "fp8")


def linear(inputs: int = 96, outputs: int = 160, bias: bool = False) -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(inputs, outputs, bias=bias).to(BF16).eval()


def model(kind: str = "llama") -> Any:
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).to(BF16).eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 96), (1, 5, 96), (2, 3, 96)])
@torch.no_grad()
def test_a_layer_computes_about_the_same(bias: bool, shape: tuple[int, ...]) -> None:
    exact, inputs = linear(bias=bias), torch.randn(shape).to(BF16)
    expected, actual = exact(inputs), from_linear(exact)(inputs)
    assert (actual.shape, actual.dtype) == (expected.shape, BF16)
    assert float((actual - expected).std() / expected.std()) < 0.05


def test_nothing_comes_of_nothing() -> None:
    assert torch.equal(from_linear(linear())(torch.zeros(2, 96, dtype=BF16)), torch.zeros(2, 160))


def test_values_out_of_range_are_the_largest_and_no_nan() -> None:
    values = torch.tensor([1e9, -1e9, 449.0, 0.5])
    assert round_to_float8(values).float().tolist() == [448.0, -448.0, 448.0, 0.5]


def test_the_largest_of_a_row_keeps_its_value_whatever_the_others_are() -> None:
    rows = torch.tensor([[1e-3, 5.0], [3e4, 1.0], [0.0, 0.0]])
    quantized, scales = quantize_rows(rows)
    assert (quantized.dtype, scales.dtype, scales.shape) == (FLOAT8, torch.float32, (3, 1))
    back = quantized.float() * scales
    torch.testing.assert_close(back.amax(1), rows.amax(1))


@torch.no_grad()
def test_a_row_is_the_same_in_any_company_to_the_last_bit() -> None:
    layer, rows = from_linear(linear()), torch.randn(7, 96).to(BF16)
    rows[3] *= 1000
    together = layer(rows)
    assert all(
        torch.equal(layer(row[None])[0], out) for row, out in zip(rows, together, strict=True)
    )


@torch.no_grad()
def test_joined_layers_compute_what_each_did() -> None:
    layers = [from_linear(linear(outputs=size, bias=True)) for size in (32, 64)]
    inputs = torch.randn(3, 96).to(BF16)
    expected = torch.cat([layer(inputs) for layer in layers], -1)
    assert torch.equal(join(layers)(inputs), expected)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_a_model_in_float8_is_computed_by_the_runner_as_by_the_library(kind: str) -> None:
    network = model(kind)
    assert gpu_precision.quantize(network, tokenizer(), "sdpa") == "fp8"
    kinds = {type(layer) for layer in network.modules() if hasattr(layer, "in_features")}
    assert kinds == {Float8Linear, nn.Linear}
    assert type(network.get_output_embeddings()) is nn.Linear  # the only one
    layout = KVCacheLayout(network)
    assert all(fuse_qkv(module) for module in layout.shapes)
    assert fuse_float8_mlps(network) == 2
    create_runner(network, layout, CacheSize(2, 64))  # raises if they differ


class GatedFloat8(nn.Module):
    """`ups_first`: the order of its calls."""

    def __init__(self, *, ups_first: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = from_linear(linear()), from_linear(linear())
        self.down_proj: nn.Module = nn.Identity()
        self._ups_first = ups_first

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._ups_first:
            ups = self.up_proj(hidden)
            gates = self.gate_proj(hidden)
        else:
            gates = self.gate_proj(hidden)
            ups = self.up_proj(hidden)
        out: torch.Tensor = self.down_proj(gates.sigmoid() * ups)
        return out


def test_an_mlp_that_calls_its_ups_first_stays_as_it_is() -> None:
    network = nn.ModuleList([GatedFloat8(ups_first=True)])
    before = dict(network.named_modules())
    assert fuse_float8_mlps(network) == 0
    assert dict(network.named_modules()) == before


class OtherInputs(GatedFloat8):
    def forward(self, hidden: Any) -> torch.Tensor:
        return super().forward(hidden.tokens)


def test_an_mlp_that_takes_other_inputs_stays_as_it_is() -> None:
    assert fuse_float8_mlps(nn.ModuleList([OtherInputs()])) == 0


def test_joining_an_mlp_needs_no_other_process() -> None:
    """Under tensor parallelism its last projection is a sum over all ranks."""

    class Divided(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the other processes do not compute it now")

    module = GatedFloat8()
    module.down_proj = down = Divided()
    assert fuse_float8_mlps(nn.ModuleList([module])) == 1
    assert module.down_proj is down


def test_the_runner_is_proved_though_float8_rounds_one_row_and_several_differently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a GPU does it, whose product of one row has other inputs. Much, to be noticed."""
    network = model()
    gpu_precision.quantize(network, tokenizer(), "sdpa")
    exact = float8_linear.multiply_rows

    def multiply(rows: torch.Tensor, *factors: Any) -> torch.Tensor:
        product: torch.Tensor = exact(rows, *factors)
        return product if len(rows) < 3 else product.roll(1, -1)

    monkeypatch.setattr(float8_linear, "multiply_rows", multiply)
    create_runner(network, KVCacheLayout(network), CacheSize(2, 64)).release()
    assert not any(getattr(layer, "exact", False) for layer in network.modules())


def test_a_wrong_runner_of_a_float8_model_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    gpu_precision.quantize(network, tokenizer(), "sdpa")
    decode = LocalModelRunner.decode

    def wrong(runner: LocalModelRunner, slots: Any, positions: Any) -> torch.Tensor:
        return decode(runner, slots, [position - 1 for position in positions])

    monkeypatch.setattr(LocalModelRunner, "decode", wrong)
    with pytest.raises(UnsupportedModel, match="differ"):
        create_runner(network, KVCacheLayout(network), CacheSize(2, 64))


@torch.no_grad()
def test_a_product_can_leave_its_inputs_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8_linear, "_WIDENED_AT_A_TIME", 64)
    layer, rows = from_linear(linear(bias=True)), torch.randn(2, 3, 96).to(BF16)
    weight = layer.weight.float() * layer.scales
    assert layer.bias is not None
    expected = nn.functional.linear(rows.float(), weight, layer.bias.float()).to(BF16)
    with float8_linear.exact_products(layer):
        torch.testing.assert_close(layer(rows), expected, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(layer(rows), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("rows", [1, 2, 300])
def test_a_layer_is_one_graph_to_the_compiler(rows: int) -> None:
    layer, inputs = from_linear(linear(bias=True)), torch.randn(1, rows, 96).to(BF16)
    with torch.no_grad():
        expected = layer(inputs)
        compiled = torch.compile(layer, dynamic=True, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(inputs), expected, rtol=2e-2, atol=2e-2)


def test_routers_and_odd_sizes_stay_as_they_are() -> None:
    block = nn.Module()
    block.gate, block.odd, block.wide = nn.Linear(32, 32), nn.Linear(32, 9), nn.Linear(32, 48)
    network = nn.Module()
    network.layers = nn.ModuleList([block])
    network.get_output_embeddings = lambda: None  # type: ignore[assignment]
    network.dtype = torch.float32  # type: ignore[assignment]
    block.router = nn.ModuleDict({"classifier": nn.Linear(32, 32)})  # as LongCat-Flash has it
    block.exact = nn.Linear(32, 32, dtype=torch.float64)
    block.bias_free = nn.Linear(32, 32)
    network._keep_in_fp32_modules_strict = {"bias_free"}  # type: ignore[assignment]
    assert [place.attribute for place in gpu_precision.find_places(network)] == ["wide"]


def test_a_model_without_such_layers_is_refused() -> None:
    network = transformers.AutoModelForCausalLM.from_config(CONFIGS["gpt2"]())
    with pytest.raises(EngineUnavailable, match="take --precision bfloat16"):
        gpu_precision.quantize(network, tokenizer(), "sdpa")


def test_a_gpu_without_such_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with ...\nmore")

    monkeypatch.setattr(torch, "_scaled_mm", missing)
    with pytest.raises(EngineUnavailable, match=r"Ada, Hopper or later.* take --precision bf"):
        gpu_precision.check(torch.device("cpu"))


def test_a_gpu_without_memory_is_not_said_to_lack_the_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB\nmore")

    monkeypatch.setattr(torch, "_scaled_mm", full)
    with pytest.raises(EngineUnavailable, match="cpu has no memory left: CUDA out of"):
        gpu_precision.check(torch.device("cpu"))


@pytest.mark.parametrize("asked", ["", "auto", "bfloat16"])
def test_float8_is_never_chosen_silently(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_PRECISION", asked)
    network = model()
    before = dict(network.named_modules())
    assert gpu_precision.quantize(network, tokenizer(), "sdpa") == ""
    assert dict(network.named_modules()) == before


def test_a_format_of_a_cpu_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_PRECISION", "int8")
    with pytest.raises(EngineUnavailable, match="auto, bfloat16, fp8 on a GPU, not 'int8'"):
        gpu_precision.check(torch.device("cpu"))
