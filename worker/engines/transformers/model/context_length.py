"""How many tokens a model can attend to, prompt and answer together."""

from typing import Any, TypeGuard

from torch import nn

_DEFAULT = 8192  # tokens, where neither config nor tokenizer has a limit: state spaces, ALiBi
_NAMES = (  # architectures call it differently
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_target_positions",
    "seq_length",
    "model_max_length",
    "context_length",
)
_UNLIMITED = 100_000_000  # a tokenizer without a limit has a larger number


def context_length(model: Any, tokenizer: Any = None) -> int:
    """The smallest length that the model's config names; if it names none, the tokenizer's."""
    config = model.config.get_text_config(decoder=True)
    lengths: list[int] = []
    for name in _NAMES:
        value = getattr(config, name, None)
        if _is_length(value):
            lengths.append(value)
    if not lengths:
        limit = getattr(tokenizer, "model_max_length", None)
        if _is_length(limit):
            return limit
        return _DEFAULT
    longest = min(lengths)
    for rope in _ropes(config):
        longest = max(longest, _scaled(rope, longest))
    for positions in _positions(model):
        longest = min(longest, positions)
    return longest


def _is_length(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 < value < _UNLIMITED


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary settings: one, or one per layer type."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return []
    return [rope] + [value for value in rope.values() if isinstance(value, dict)]


def _scaled(rope: dict[str, Any], longest: int) -> int:
    """The length after scaling, where a config names the one before and the factor."""
    kind, factor = rope.get("rope_type"), rope.get("factor")
    if not isinstance(factor, int | float) or factor <= 1:
        return longest
    if kind == "dynamic":
        return int(longest * factor)
    original = rope.get("original_max_position_embeddings")
    if kind == "yarn" and _is_length(original):
        return int(original * factor)
    return longest


def _positions(model: Any) -> list[int]:
    """The sizes of learned position tables. RoBERTa's first rows are for padding."""
    lengths = []
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            length = module.num_embeddings
            if module.padding_idx is not None:
                length -= module.padding_idx + 1
            lengths.append(length)
    return lengths
