"""How many tokens a model can see at once, prompt and answer together."""

from typing import Any, TypeGuard

from torch import nn

_DEFAULT = 8192  # tokens, where nothing says it: state spaces, ALiBi
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
_UNSAID = 100_000_000  # a tokenizer without a limit names a number beyond this


def context_length(model: Any, tokenizer: Any = None) -> int:
    """By the model's config; where that names none, by its tokenizer."""
    config = model.config.get_text_config(decoder=True)
    said = [
        value for value in (getattr(config, name, None) for name in _NAMES) if _is_length(value)
    ]
    if not said:
        limit = getattr(tokenizer, "model_max_length", None)
        return limit if _is_length(limit) else _DEFAULT
    longest = min(said)
    for rope in _ropes(config):
        longest = max(longest, _scaled(rope, longest))
    return min([longest, *_positions(model)])


def _is_length(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 < value < _UNSAID


def _ropes(config: Any) -> list[dict[str, Any]]:
    """One, or one for each type of layers."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return []
    return [rope, *(each for each in rope.values() if isinstance(each, dict))]


def _scaled(rope: dict[str, Any], longest: int) -> int:
    """Where a config names the length before the scaling, and by how much it is stretched."""
    kind, factor = rope.get("rope_type"), rope.get("factor")
    if not isinstance(factor, int | float) or factor <= 1:
        return longest
    if kind == "dynamic":
        return int(longest * factor)
    if kind == "yarn" and _is_length(original := rope.get("original_max_position_embeddings")):
        return int(original * factor)
    return longest


def _positions(model: Any) -> list[int]:
    """A table of positions whose first rows are for padding (RoBERTa's) has as many fewer for tokens."""
    rows = []
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            padding = module.padding_idx
            rows.append(module.num_embeddings - (0 if padding is None else padding + 1))
    return rows
