"""Mixtures of experts: a step reads nothing on the host, so that a CUDA graph can hold it. Fake
tensors have shapes and no numbers: whatever wants one fails.
"""

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from worker.engines.transformers.model.shrunk_config import shrunk

_TOKENS = 7


def step(kind: str) -> torch.Tensor:
    """Logits of some tokens, by the library's own choice of products."""
    config = shrunk(CONFIG_MAPPING[kind]())
    with FakeTensorMode(), torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        ids = torch.zeros((1, _TOKENS), dtype=torch.long)
        positions = torch.arange(_TOKENS)[None]
        logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits


@pytest.mark.parametrize(
    "kind",
    ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v3", "glm4_moe"],
)
def test_a_graph_can_hold_a_step(kind: str) -> None:
    assert step(kind).shape[:2] == (1, _TOKENS)


@pytest.mark.parametrize("kind", ["jetmoe"])
def test_experts_that_are_called_one_by_one_need_the_host(kind: str) -> None:
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        step(kind)
