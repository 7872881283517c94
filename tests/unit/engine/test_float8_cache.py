"""Keys and values in float8: scales, memory, answers, and where they are refused."""

import gc
import weakref
from typing import Any

import pytest
import torch
import transformers

from tests.unit.engine.tiny import CONFIGS, tokenizer
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import float8_cache
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.float8 import FLOAT8
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.probe import check_equal, create_runner

BF16 = torch.bfloat16
GPU = torch.device("cuda", 0)


def model(kind: str = "llama") -> Any:
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).to(BF16).eval()


def capability(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, minor))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma3"])
def test_answers_are_about_the_same_in_half_of_the_memory(kind: str) -> None:
    network = model(kind)
    layout, size = KVCacheLayout(network), CacheSize(2, 64, 8)
    plain = create_runner(network, layout, size)
    taken, per_token = plain.cache_bytes, layout.bytes_per_token(layout.dtype)
    plain.release()
    network.set_attn_implementation("sdpa")
    assert 0 <= float8_cache.use_float8(network, tokenizer(), layout) < 0.1
    runner = create_runner(network, layout, size)  # raises if its answers are others
    assert (2 * runner.cache_bytes, 2 * layout.bytes_per_token(layout.dtype)) == (taken, per_token)
    assert {module.key_cache.dtype for module in layout.shapes} == {FLOAT8}


def test_a_model_that_is_gone_leaves_nothing_behind() -> None:
    """transformers' registry of attention functions lives as long as the process."""
    network = model()
    layout = KVCacheLayout(network)
    float8_cache.use_float8(network, tokenizer(), layout)
    runner = create_runner(network, layout, CacheSize(2, 64, 8))
    left = [weakref.ref(module.key_cache) for module in layout.shapes]
    left += [weakref.ref(network)]
    del network, layout, runner
    gc.collect()
    assert [reference() for reference in left] == [None] * 3


def test_a_runner_that_is_wrong_is_noticed_in_float8_too() -> None:
    logits = torch.randn(4, 259)
    wrong = [logits.roll(1, 0)]
    with pytest.raises(UnsupportedModel):
        check_equal(FLOAT8, wrong, [logits])


@pytest.mark.parametrize("size", [1e-4, 1.0, 3000.0])
def test_scales_follow_the_numbers_of_each_layer(size: float) -> None:
    """Without them small values would be rounded to nothing, and large ones cut."""
    network = model("qwen2")
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.v_proj.weight *= size
            layer.self_attn.v_proj.bias *= size
            layer.self_attn.o_proj.weight /= size
    layout = KVCacheLayout(network)
    assert 0 <= float8_cache.use_float8(network, tokenizer(), layout) < 0.1
    create_runner(network, layout, CacheSize(2, 64, 8))
    for module in layout.shapes:
        assert float(module.value_cache[:2].float().nan_to_num().abs().max()) <= 448


@pytest.mark.parametrize("peak", [1e-5, 0.3, 1.0, 448.0, 1e5])
def test_a_scale_is_a_power_of_two_and_leaves_room(peak: float) -> None:
    scale = float8_cache._scale(peak)
    assert torch.frexp(torch.tensor(scale)).mantissa == 0.5
    assert 224 / 2 < peak / scale <= 224


@pytest.mark.parametrize("peak", [0.0, float("inf"), float("nan")])
def test_a_peak_that_is_no_number_scales_nothing(peak: float) -> None:
    assert float8_cache._scale(peak) == 1.0


def test_it_is_used_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    capability(monkeypatch, 9, 0)
    monkeypatch.delenv("CANOPY_KV_CACHE_DTYPE", raising=False)
    assert not float8_cache.is_requested(GPU)
    monkeypatch.setenv("CANOPY_KV_CACHE_DTYPE", "fp8")
    assert float8_cache.is_requested(GPU)


@pytest.mark.parametrize(
    ("device", "asked", "reason"),
    [
        (torch.device("cpu"), "fp8", "auto, float32 on a CPU, not 'fp8'"),
        (GPU, "int4", "auto, bfloat16, fp8 on a GPU, not 'int4'"),
        (GPU, "fp8", "needs an Ada or Hopper GPU or a later one; take bfloat16 on a card"),
    ],
)
def test_a_device_that_lacks_it_is_refused(
    device: torch.device, asked: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    capability(monkeypatch, 8, 6)
    monkeypatch.setenv("CANOPY_KV_CACHE_DTYPE", asked)
    with pytest.raises(EngineUnavailable, match=reason):
        float8_cache.is_requested(device)
