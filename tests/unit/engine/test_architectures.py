"""Every causal language model of the library, tiny and random: how it is computed here, and that
its tokens are those of `generate`. The results are the table in docs/engines.md.

`CANOPY_WRITE_TABLE=1 .venv/bin/pytest tests/unit/engine/test_architectures.py` updates it.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from structlog.testing import capture_logs
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.unit.engine.architectures import answers, generated, loaded, prompts, tiny
from worker.engines.base import EngineUnavailable

PAGE = Path(__file__).parents[3] / "docs" / "engines.md"
BEGIN, END = "<!-- architectures: written by a test -->\n", "<!-- end of architectures -->\n"
LENGTHS, MORE = (3, 13, 37), 6  # tokens of prompts and of answers: below, across and beyond windows
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_WINDOWED = {
    "use_sliding_window": True,
    "max_window_layers": 1,
    "num_hidden_layers": 2,
}

# What an architecture's config needs that its defaults do not give.
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}
    },
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": None, "mamba_d_head": 64},
    "granitemoehybrid": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "hunyuan_v1_dense": {"rope_parameters": _ROPE, "head_dim": 128},
    "hunyuan_v1_moe": {"rope_parameters": _ROPE, "head_dim": 128},
    "jamba": {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"hidden_size": 256, "num_heads": 4, "head_dim": 64, "expand": 1, "n_groups": 2},
    "ministral": {"rope_parameters": _ROPE, "head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "qwen2": _WINDOWED,
    "qwen2_moe": _WINDOWED,
    "qwen3": _WINDOWED,
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": 4096},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xmod": {"default_language": "en_XX"},
}
# What it needs once it is small.
SMALL: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [32] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "hybrid_layer_ids": [1, 2],
    },
}

# What this test cannot make, or the library cannot generate with.
NOT_TRIED = {
    "blt": "its `generate` wants bytes in patches",
    "dots3_note": "the sizes of its audio adapter are not those of its text",
    "gemma3n": "its encoders want timm",
    "gemma4_assistant": "a drafting model: it reads the states of another one",
    "gemma4_unified_assistant": "a drafting model: it reads the states of another one",
    "musicgen": "makes sound",
    "musicgen_melody": "makes sound",
    "prophetnet": "the library's own `generate` fails with a short prompt",
    "qwen4_exp": "its config has no defaults for the indexer",
    "qwen4_exp_text": "its config has no defaults for the indexer",
    "reformer": "wants prompts of a multiple of its chunks",
}


class Found(NamedTuple):
    kind: str  # model_type
    architecture: str
    computed: str
    why: str

    def line(self) -> str:
        """Of the table."""
        return f"| `{self.kind}` | {self.architecture} | {self.computed} | {self.why} |\n"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()


@cache
def find(kind: str) -> Found:
    """Raises AssertionError for tokens that are not the library's."""
    model = tiny(kind, SMALL.get(kind), **SETTINGS.get(kind, {}))
    prompt_ids = prompts(LENGTHS)
    expected = [generated(model, prompt, MORE) for prompt in prompt_ids]
    name = type(model).__name__
    with capture_logs() as lines:
        try:
            there = loaded(model, slots=2)
        except EngineUnavailable as error:
            return Found(kind, name, "refused", str(error))
    assert answers(there, prompt_ids, MORE) == expected, kind
    if there.runner is not None:
        return Found(kind, name, "fast path", "")
    way = "library's way" if there.batched else "library's way, one by one"
    [reason] = [line["reason"] for line in lines if line["event"] == "computed the library's way"]
    return Found(kind, name, way, re.sub(r" by [\d.e+-]+ standard deviations", "", reason))


@pytest.mark.parametrize(
    "kind", [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in NOT_TRIED]
)
def test_tokens_are_those_of_generate(kind: str) -> None:
    find(kind)


def test_the_page_says_what_was_found() -> None:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    expected = before + BEGIN + table() + END + after
    if os.environ.get("CANOPY_WRITE_TABLE"):
        PAGE.write_text(expected)
        return
    assert text == expected, "run this file with CANOPY_WRITE_TABLE=1"


def table() -> str:
    """In Markdown."""
    rows = [find(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in NOT_TRIED]
    rows += [
        Found(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind], "not tried", why)
        for kind, why in NOT_TRIED.items()
    ]
    head = "| `model_type` | architecture | computed | why |\n| --- | --- | --- | --- |\n"
    return head + "".join(row.line() for row in sorted(rows))
