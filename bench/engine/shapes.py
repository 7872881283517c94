"""Models by their shape alone: the published sizes of known ones, filled with random numbers.

An engine's speed depends on sizes, not on what the weights say. Nothing is downloaded and nothing is written.
"""

from collections.abc import Callable
from typing import Any

SEED = 1
_SPREAD = 0.02  # standard deviation of random weights, as models begin their training

_NO_MARKS = {
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}  # no token ends or begins anything


def config(name: str) -> Any:
    """The transformers configuration called `name`. Raises KeyError."""
    return SHAPES[name]()


def build(shape: Any, device: Any, dtype: Any, seed: int = SEED) -> Any:
    """A model of that configuration, made on `device` itself, with weights drawn there (normal, 0.02) from `seed`.

    Vectors (norms, biases) stay as the library makes them. On the device "meta" nothing is drawn and no memory taken.
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
    model.generation_config = transformers.GenerationConfig(**_NO_MARKS)
    return model.eval()


def tokenizer(vocabulary: int) -> Any:
    """A word a token: "w0" to "w<vocabulary - 1>", separated by spaces; whatever else is "w0". No special tokens."""
    import tokenizers
    import transformers

    words = {f"w{number}": number for number in range(vocabulary)}
    unknown = {"unk_token": "w0"}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, **unknown))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **unknown)


def _tiny() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=64, vocab_size=256, max_position_embeddings=2048, tie_word_embeddings=True, **_NO_MARKS,
    )  # fmt: skip


def _llama_3_8b() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
        vocab_size=128256, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, **_NO_MARKS,
    )  # fmt: skip


def _llama_3_2_1b() -> Any:
    from transformers import LlamaConfig

    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return LlamaConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        intermediate_size=8192, vocab_size=128256, max_position_embeddings=131072, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_parameters=rope, **_NO_MARKS,
    )  # fmt: skip


def _qwen2_5_7b() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944,
        vocab_size=152064, max_position_embeddings=32768, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, **_NO_MARKS,
    )  # fmt: skip


def _qwen3_8b() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        intermediate_size=12288, vocab_size=151936, max_position_embeddings=40960, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, **_NO_MARKS,
    )  # fmt: skip


def _gemma_3_4b() -> Any:
    """The text half: five layers with a window of 1024 tokens, then one that sees everything."""
    from transformers import Gemma3TextConfig

    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    }
    return Gemma3TextConfig(
        hidden_size=2560, num_hidden_layers=34, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        intermediate_size=10240, vocab_size=262208, max_position_embeddings=131072, sliding_window=1024,
        rope_parameters=rope, **_NO_MARKS,
    )  # fmt: skip


def _gemma_3_270m() -> Any:
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        hidden_size=640, num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1, head_dim=256,
        intermediate_size=2048, vocab_size=262144, max_position_embeddings=32768, sliding_window=512, **_NO_MARKS,
    )  # fmt: skip


def _mistral_7b() -> Any:
    """As of v0.3, which has no window."""
    from transformers import MistralConfig

    return MistralConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
        vocab_size=32768, max_position_embeddings=32768, sliding_window=None, rms_norm_eps=1e-5,
        tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, **_NO_MARKS,
    )  # fmt: skip


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(**_NO_MARKS)


SHAPES: dict[str, Callable[[], Any]] = {
    "tiny": _tiny,
    "gpt2": _gpt2,
    "gemma-3-270m": _gemma_3_270m,
    "llama-3.2-1b": _llama_3_2_1b,
    "gemma-3-4b": _gemma_3_4b,
    "mistral-7b": _mistral_7b,
    "qwen2.5-7b": _qwen2_5_7b,
    "llama-3-8b": _llama_3_8b,
    "qwen3-8b": _qwen3_8b,
}
"""Published sizes; `tiny` is for tests on a CPU."""
