"""One product for queries, keys and values."""

import pytest
import torch
import transformers
from torch import nn

from tests.unit.engine.tiny import CONFIGS
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
