"""Models of known shapes: published sizes, filled with random numbers.

An engine's speed depends on sizes, not on what the weights say. Nothing is downloaded.
"""

from typing import Any

_SPREAD = 0.02  # standard deviation of random weights, as models begin their training
# No token begins or ends anything: every answer is as long as it was asked for.
_NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

Shape = dict[str, Any]


def _shape(
    kind: str, layers: int, hidden: int, inner: int, heads: tuple[int, int, int], **others: Any
) -> Shape:
    """`kind`: the configuration's class; `heads`: query heads, key-value heads, size of a head."""
    query, key_value, size = heads
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner}
    sizes |= {"num_attention_heads": query, "num_key_value_heads": key_value, "head_dim": size}
    return {"kind": kind, **sizes, **others}


def _text(vocabulary: int, positions: int, *, tied: bool) -> Shape:
    """`tied`: the output's embeddings are the input's."""
    sizes = {"vocab_size": vocabulary, "max_position_embeddings": positions}
    return {**sizes, "tie_word_embeddings": tied}


def _rope(theta: float) -> Shape:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


_LLAMA_3_2 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_GEMMA_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
}
_TINY = _text(256, 2048, tied=True)
_GEMMA_270M = _text(262144, 32768, tied=True) | {"sliding_window": 512}
_LLAMA_1B = _text(128256, 131072, tied=True) | {"rope_parameters": _LLAMA_3_2}
_GEMMA_4B = _text(262208, 131072, tied=True) | {"sliding_window": 1024}
_GEMMA_4B |= {"rope_parameters": _GEMMA_ROPE}
_QWEN_7B = _text(152064, 32768, tied=False) | _rope(1000000.0)
_LLAMA_8B = _text(128256, 8192, tied=False) | _rope(500000.0)
_QWEN_8B = _text(151936, 40960, tied=False) | _rope(1000000.0)
SHAPES: dict[str, Shape] = {
    "tiny": _shape("LlamaConfig", 2, 32, 64, (4, 2, 16), **_TINY),
    "gemma-3-270m": _shape("Gemma3TextConfig", 18, 640, 2048, (4, 1, 256), **_GEMMA_270M),
    "llama-3.2-1b": _shape("LlamaConfig", 16, 2048, 8192, (32, 8, 64), **_LLAMA_1B),
    "gemma-3-4b": _shape("Gemma3TextConfig", 34, 2560, 10240, (8, 4, 256), **_GEMMA_4B),
    "qwen2.5-7b": _shape("Qwen2Config", 28, 3584, 18944, (28, 4, 128), **_QWEN_7B),
    "llama-3-8b": _shape("LlamaConfig", 32, 4096, 14336, (32, 8, 128), **_LLAMA_8B),
    "qwen3-8b": _shape("Qwen3Config", 36, 4096, 12288, (32, 8, 128), **_QWEN_8B),
}


def config(name: str) -> Any:
    """The transformers configuration called `name`. Raises KeyError."""
    import transformers

    sizes = {**SHAPES[name], **_NO_SPECIAL_TOKENS}
    return getattr(transformers, sizes.pop("kind"))(**sizes)


def build(shape: Any, device: Any, dtype: Any, seed: int = 1) -> Any:
    """A model of that configuration on `device`, its matrices drawn there (normal, 0.02).

    Vectors stay as the library makes them. On "meta" nothing is drawn and no memory is taken.
    """
    import torch
    import transformers

    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype)
    if torch.device(device).type == "meta":
        return model.eval()
    generator = torch.Generator(device=device).manual_seed(seed)
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
