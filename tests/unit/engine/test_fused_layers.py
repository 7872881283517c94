"""Attention modules and MLPs of a CPU in few operations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.unit.engine.architectures import answers, generated, loaded, prompts, tiny
from tests.unit.engine.test_architectures import SETTINGS, SMALL
from tests.unit.engine.tiny import CONFIGS
from worker.engines.transformers.model import kv_cache
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.fused_layers import (
    FusedAttention,
    FusedGatedMLP,
    _fused_mlp,
    fuse_layers,
    shorten_lookups,
)

# attention modules and MLPs of two layers
FUSED = {"llama": (2, 2), "qwen3": (2, 2), "gemma3": (2, 2), "gpt2": (0, 0)}


def model(kind: str) -> Any:
    torch.manual_seed(7)
    made = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" in name:
                weight.copy_(torch.rand_like(weight) + 0.5)
    return made


@torch.inference_mode()
def logits(made: Any) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12) * 7
    output: torch.Tensor = made(input_ids=ids, use_cache=False).logits
    return output


@pytest.mark.parametrize("kind", FUSED)
def test_a_model_says_the_same_with_them(kind: str) -> None:
    made = model(kind)
    before = logits(made)
    fuse_layers(made, "sdpa")
    modules = list(made.modules())
    counts = tuple(
        sum(isinstance(module, fused) for module in modules)
        for fused in (FusedAttention, FusedGatedMLP)
    )
    assert counts == FUSED[kind]
    torch.testing.assert_close(logits(made), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_the_library_generates_the_same_with_them(kind: str) -> None:
    """Over its own cache, which the fused attention fills."""
    made, ids = model(kind), torch.arange(9)[None] * 5
    plain = made.generate(ids, max_new_tokens=8, do_sample=False)
    fuse_layers(made, "sdpa")
    assert torch.equal(made.generate(ids, max_new_tokens=8, do_sample=False), plain)


def test_undone_the_library_computes_as_before() -> None:
    made = model("llama")
    before, modules = logits(made), dict(made.named_modules())
    for replacement in fuse_layers(made, "sdpa"):
        replacement.undo()
    assert dict(made.named_modules()) == modules
    torch.testing.assert_close(logits(made), before)


def test_nothing_is_kept_twice() -> None:
    made = model("llama")
    attention = made.model.layers[0].self_attn
    replacements = fuse_layers(made, "sdpa")
    fused = made.model.layers[0].self_attn
    storage = fused.joined.weight.untyped_storage().data_ptr()
    assert attention.k_proj.weight.untyped_storage().data_ptr() == storage
    for replacement in replacements:
        replacement.keep()
    assert not list(attention.children())
    assert logits(made).isfinite().all()


@pytest.mark.parametrize(
    "kind", ["gemma3_text", "llama", "olmo2", "phi3", "phimoe", "qwen3", "smollm3", "starcoder2"]
)
def test_a_runner_s_tokens_are_those_of_generate(kind: str) -> None:
    """In float32, over rows of the cache: prompts in chunks, and rows that decode together."""
    made, prompt_ids = tiny(kind), prompts((3, 13, 37))
    expected = [generated(made, prompt, 6) for prompt in prompt_ids]
    there = loaded(made, slots=2)
    assert there.runner is not None
    for replacement in fuse_layers(made, "sdpa"):
        replacement.keep()
    shorten_lookups(made)
    assert answers(there, prompt_ids, 6) == expected


def test_shortened_lookups_find_what_replaces_a_module() -> None:
    made = model("llama")
    shorten_lookups(made)
    made.model.norm = replaced = nn.Identity()
    assert made.model.norm is replaced
    assert dict(made.named_modules())["model.norm"] is replaced


def _interleaved(attention: Any) -> None:
    """Rotates neighbours instead of halves."""
    forward = attention.forward

    def other(hidden_states: torch.Tensor, position_embeddings: Any, **rest: Any) -> Any:
        cos, sin = position_embeddings
        return forward(hidden_states, position_embeddings=(cos, sin.flip(-1)), **rest)

    attention.forward = other


def _scaled(attention: Any) -> None:
    """Computes something of its own with what the projection gave."""
    attention.o_proj.register_forward_hook(lambda *_: _[2] * 2)
    attention.q_proj.register_forward_hook(lambda *_: _[2] * 2)


@pytest.mark.parametrize("change", [_interleaved, _scaled])
def test_an_attention_that_computes_something_else_stays(change: Callable[[Any], None]) -> None:
    made = model("llama")
    attention = made.model.layers[0].self_attn
    change(attention)
    before = logits(made)
    fuse_layers(made, "sdpa")
    assert made.model.layers[0].self_attn is attention
    torch.testing.assert_close(logits(made), before, rtol=1e-4, atol=1e-4)
    assert isinstance(made.model.layers[1].self_attn, FusedAttention)


class Unlike(nn.Module):
    """Has the attributes of a gated MLP, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 16), nn.Linear(8, 16)
        self.down_proj, self.act_fn = nn.Linear(16, 8), nn.SiLU()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = self.act_fn(self.gate_proj(hidden)) + self.up_proj(hidden)
        return self.down_proj(gated)  # type: ignore[no-any-return]


def test_an_mlp_that_computes_something_else_stays() -> None:
    assert _fused_mlp(Unlike()) is None


@pytest.mark.parametrize("kind", ["doge", "glm4_moe", "granitemoehybrid", "nemotron"])
def test_what_is_given_other_inputs_than_the_proof_stays(kind: str) -> None:
    """Angles for a part of a head, or none, or what only the model's attention takes."""
    made = tiny(kind, SMALL.get(kind), **SETTINGS.get(kind, {}))
    before = dict(made.named_modules())
    assert not fuse_layers(made, "sdpa")
    assert dict(made.named_modules()) == before


def test_a_model_whose_attention_cannot_be_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("llama")
    before = dict(made.named_modules())

    def refuse(*_: Any) -> None:
        raise UnsupportedModel("its attention cannot be replaced")

    monkeypatch.setattr(kv_cache, "set_attention_function", refuse)
    assert not fuse_layers(made, "sdpa")
    assert dict(made.named_modules()) == before
