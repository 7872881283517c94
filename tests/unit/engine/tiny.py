"""Tiny models with random weights and a byte-level tokenizer: real classes, no download."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

BOS, EOS, TURN = "<s>", "</s>", "<|im_end|>"


def tokenizer(bos: bool = True) -> Any:
    """A token a byte, so that every character beyond ASCII is split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([BOS, EOS, TURN, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([BOS, EOS, TURN])
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 0)]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS)


_SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.3,  # far apart logits: rounding must not decide who is the greatest
}
_WINDOW = {"sliding_window": 12, "head_dim": 8}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_SHAPE),
    "qwen2": lambda: transformers.Qwen2Config(**_SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**_SHAPE, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**_SHAPE, **_WINDOW),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**_SHAPE, "pad_token_id": 0},
        **_WINDOW,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=259,
        n_positions=512,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
    ),
}


def save_model(kind: str, folder: Path) -> Path:
    """A folder as `prepare` would leave it."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    if (
        kind == "llama"
    ):  # readable answers: bytes beyond ASCII and the special tokens are never the likeliest
        alphabet = tokenizer().convert_ids_to_tokens(range(259))
        model.lm_head.weight.data[
            [n for n, token in enumerate(alphabet) if len(token) > 1 or token > "~"]
        ] = 0
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
