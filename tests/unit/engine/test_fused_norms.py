"""RMS norms as one operation."""

import pytest
import torch
import transformers
from torch import nn

from tests.unit.engine.tiny import CONFIGS
from worker.engines.transformers.model.fused_norms import FusedNorm, fuse_norms

NORMS = {
    "llama": 5,
    "qwen3": 9,
    "gemma3": 13,
    "gpt2": 0,
}  # of two layers and the end; LayerNorm is not an RMS norm


@pytest.mark.parametrize("kind", NORMS)
@torch.inference_mode()
def test_a_model_says_the_same_with_them(kind: str) -> None:
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.copy_(torch.rand_like(weight) + 0.5)
    ids = torch.randint(0, 259, (2, 9))
    before = model(input_ids=ids).logits
    assert fuse_norms(model) == NORMS[kind]
    assert sum(isinstance(module, FusedNorm) for module in model.modules()) == NORMS[kind]
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)


class Unlike(nn.Module):
    """Has the attributes of an RMS norm, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.weight


def test_what_computes_something_else_stays() -> None:
    assert fuse_norms(nn.Sequential(Unlike(), nn.LayerNorm(4), nn.Linear(4, 4))) == 0
