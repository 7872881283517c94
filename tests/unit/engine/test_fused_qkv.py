"""One product for queries, keys and values."""

from typing import Any

import pytest
import torch
import transformers
from structlog.testing import capture_logs
from torch import nn

from tests.unit.engine.tiny import CONFIGS
from worker.engines.transformers.model import compilation
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.fused_qkv import fuse_qkv
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.probe import create_runner


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma3"])
def test_a_fused_model_says_the_same(kind: str) -> None:
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    ids = torch.randint(0, 259, (2, 9))
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        layout = KVCacheLayout(model)
        assert sum(fuse_qkv(module) for module in layout.shapes) == len(layout.shapes)
        create_runner(model, layout, CacheSize(2, 64))  # over the KV cache, too
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)


def test_what_has_no_three_plain_projections_is_left_alone() -> None:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["gpt2"]())
    modules = list(KVCacheLayout(model).shapes)
    assert not any(fuse_qkv(module) for module in modules)


def test_a_projection_of_another_kind_is_left_alone() -> None:
    class Special(nn.Linear):
        pass

    module = nn.Module()
    module.q_proj, module.k_proj, module.v_proj = nn.Linear(4, 4), Special(4, 4), nn.Linear(4, 4)
    assert not fuse_qkv(module)
    module.k_proj = nn.Linear(4, 4, bias=False)
    assert not fuse_qkv(module)


def test_keys_before_queries_are_refused() -> None:
    module = nn.Module()
    module.q_proj, module.k_proj, module.v_proj = (nn.Linear(4, size) for size in (6, 2, 2))
    expected = [
        module.q_proj(torch.ones(4)),
        module.k_proj(torch.ones(4)),
        module.v_proj(torch.ones(4)),
    ]
    assert fuse_qkv(module)
    with pytest.raises(RuntimeError, match="before the query projection"):
        module.k_proj(torch.ones(4))
    for name, value in zip(("q_proj", "k_proj", "v_proj"), expected, strict=True):
        torch.testing.assert_close(getattr(module, name)(torch.ones(4)), value)


def test_memory_that_ends_while_projections_are_joined_does_not_end_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that were joined until then stay so, and the model says the same."""
    model: Any = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    layout, ids = KVCacheLayout(model), torch.randint(0, 259, (2, 9))
    remaining = iter([fuse_qkv])

    def fuse(module: Any) -> bool:
        function = next(remaining, None)
        if function is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 224 MiB")
        return function(module)

    monkeypatch.setattr(compilation, "fuse_qkv", fuse)
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        with capture_logs() as lines:
            assert compilation._join_projections(model, layout) == 1
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)
    assert [line["event"] for line in lines] == ["some projections are not joined"]


def test_whatever_fails_before_the_capture_leaves_the_model_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    layout = KVCacheLayout(model)
    runner = create_runner(model, layout, CacheSize(2, 64))

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(compilation, "compile_model", fail)
    with capture_logs() as lines:
        compilation.optimize(model, layout, runner)
    assert [line["event"] for line in lines] == ["not compiled"]
