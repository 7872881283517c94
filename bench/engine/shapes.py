"""Models of published sizes filled with random numbers: speed depends on sizes alone."""

from typing import Any

_SPREAD = 0.02  # standard deviation of random weights, as models begin their training
# No token begins or ends anything: every answer is as long as it was asked for.
_NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

ARCHITECTURE = "LlamaForCausalLM"

# What LlamaConfig is given.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 256,
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}


def config(name: str) -> Any:
    """The transformers configuration called `name`. Raises KeyError."""
    import transformers

    return transformers.LlamaConfig(**SHAPES[name], **_NO_SPECIAL_TOKENS)


def build(shape: Any, device: Any, dtype: Any) -> Any:
    """A model on `device` with random matrices (normal, 0.02); on "meta" without memory."""
    import torch
    import transformers

    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype)
    if torch.device(device).type == "meta":
        return model.eval()
    generator = torch.Generator(device=device).manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():  # tied ones come once
            if weight.dim() > 1:
                weight.normal_(0, _SPREAD, generator=generator)
    model.generation_config = transformers.GenerationConfig(**_NO_SPECIAL_TOKENS)
    return model.eval()


def tokenizer(vocabulary: int) -> Any:
    """A word a token, "w0" to "w<vocabulary - 1>"; any other word is "w0". No special tokens."""
    import tokenizers
    import transformers

    words = {f"w{number}": number for number in range(vocabulary)}
    unknown = {"unk_token": "w0"}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, **unknown))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **unknown)
