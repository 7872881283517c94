"""Architectures whose attention or experts need something special, over a KV cache of pages as a
GPU has it: their tokens are those of `generate`, also where sequences are preempted.
"""

from typing import Any

import pytest
import torch

from tests.unit.engine.architectures import LENGTHS, answers, generated, loaded, prompts, tiny
from tests.unit.engine.pages import look_a_step_later, use_pages

_MORE = 20  # tokens of an answer: beyond windows, chunks and a sequence's first blocks
_FEW = 160  # tokens that there is memory for: three sequences need more
KINDS: dict[str, dict[str, Any]] = {
    "gpt_oss": {},  # sinks, windows, experts with biases
    "flint": {},  # sinks
    "mimo_v2_flash": {},  # sinks in layers with windows alone, values smaller than keys
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "deepseek_v3": {},  # values smaller than keys
    "llama4_text": {},  # chunks, and queries that grow with their position
    "gemma2": {},  # capped within windows
    "gemma3_text": {},
    "mistral": {},
    "mixtral": {},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 4},
    "qwen3_moe": {},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_over_few_pages_are_those_of_generate(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(kind, **KINDS[kind])
    prompt_ids = prompts(LENGTHS)
    expected = [generated(model, prompt, _MORE) for prompt in prompt_ids]
    use_pages(monkeypatch, _FEW)
    there = loaded(model, context=LENGTHS[-1] + _MORE)
    assert there.runner is not None
    assert there.runner.blocks
    look_a_step_later(monkeypatch)
    assert answers(there, prompt_ids, _MORE) == expected
    assert answers(there, prompt_ids, _MORE) == expected  # the second time from cached blocks


@pytest.mark.parametrize("kind", ["gpt_oss", "mistral", "llama4_text"])
def test_prompts_that_share_a_beginning_share_what_their_windows_see(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the windows, and with so few pages that shared blocks are taken for others, too."""
    model = tiny(kind)
    [beginning, *tails] = prompts((40, 1, 9, 17, 30, 5, 24))
    prompt_ids = [beginning + tail for tail in tails] + [beginning[:25] + tails[0]]
    expected = [generated(model, prompt, _MORE) for prompt in prompt_ids]
    use_pages(monkeypatch, _FEW)
    there = loaded(model, context=40 + 30 + _MORE)
    look_a_step_later(monkeypatch)
    for _ in range(2):
        assert answers(there, prompt_ids, _MORE) == expected
