"""A small config of the same architecture: the same code, few weights, and every window, chunk and
limit in it a few tokens wide, so that a short sequence reaches beyond all of them.

Names differ between architectures, and a window may have any name. So it works the other way round:
what is known to be a size keeps its proportions, and **every other large number is taken for a
limit** and made small.
"""

import copy
import re
from typing import Any, NamedTuple

LIMIT = 8  # tokens: what windows, chunks and the like become
ORIGINAL = 16  # tokens: the length beyond which a scaled rotary embedding changes
POSITIONS = 128  # the model's own context
_HEADS, _LAYERS, _WIDTH = 4, 2, 64
_HEAD_SIZE = 16
_LARGE = 32  # a number up to here is a count or a period, and stays

_LAYER_COUNTS = re.compile(
    r"^(num_hidden_layers|n_layers?|num_layers|num_blocks|(num_)?(en|de)coder_layers)$"
)
_LAYER_LISTS = re.compile(r"(layers|idxs|indices|layer_ids)$")
_MAIN_HEADS = re.compile(r"^((num_(decoder_)?|decoder_)?attention_heads|n_heads?|num_heads)$")
_HEAD_COUNTS = re.compile(r"(heads|n_head|heads_per_layer)$")
_HEAD_SIZES = re.compile(
    r"head_?(dim|size)$|^(d|dim)_head$|_d_head$|^kv_channels$|^rotary_dim$|^qk_|lora_rank$|_d_state$|state_size$"
)
_WIDTHS = re.compile(
    r"^(hidden_size|n_embd|d_model|dim|embedding_dim|emb_dim|embedding_size|word_embed_proj_dim|attention_hidden_size|lru_width)$"
)
_POSITIONS = re.compile(
    r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|seq_length|model_max_length"
    r"|max_(target|source)_positions|context_length)$"
)
_LARGEST = (  # of numbers with such names; the first that matches counts
    (re.compile(r"^original_max_position_embeddings$"), ORIGINAL),
    (_POSITIONS, POSITIONS),
    (re.compile(r"vocab_size"), 96),
    (re.compile(r"(token_ids?|_index|_idx|lang_id)$"), 2),
    (re.compile(r"^(n_group|topk_group|num_expert_group)$"), 1),
    (re.compile(r"experts_per_tok(en)?$|^moe_(k|topk|top_k)$"), 2),
    (re.compile(r"experts$"), 4),
    (re.compile(r"top_?k|blocks$"), 2),  # of blocks, or of keys, that a token sees
    (re.compile(r"window|chunk|local|block|slid|context|span|stride"), LIMIT),
    (re.compile(r"size|dim"), 32),
)


class _Measure(NamedTuple):
    """What numbers of one level of a config are measured by."""

    layers: tuple[int, ...]  # those that are kept, of `of`
    of: int
    heads: int  # before
    divisor: int  # of what belongs to a head
    hidden: int  # size, before
    width: int  # and after


def shrunk(config: Any) -> Any:
    """Raises whatever the config's class does about it."""
    return type(config).from_dict(_shrunk(copy.deepcopy(config.to_dict())))


def _shrunk(values: dict[Any, Any], above: _Measure | None = None) -> dict[Any, Any]:
    """`above`: of the level that this one is a part of, which counts where it has no heads itself."""
    own = any(_MAIN_HEADS.match(str(name)) for name in values)
    measure = _measured(values) if own or above is None else above
    small = {name: _part(str(name), value, measure) for name, value in values.items()}
    if "dynamic" in str(
        small.get("rope_parameters")
    ):  # frequencies change from the model's own length on
        for name in small:
            if _POSITIONS.match(str(name)):
                small[name] = ORIGINAL
    return small


def _part(name: str, value: Any, measure: _Measure) -> Any:
    if name == "per_layer_config" and isinstance(value, dict):
        return _per_layer({int(layer): settings for layer, settings in value.items()}, measure)
    if name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
        return _rope(value, measure)
    if isinstance(value, dict):
        return _shrunk(value, measure)
    if isinstance(value, list):
        if _lists_layers(name, value):
            return [new for new, old in enumerate(measure.layers) if old in value]
        if measure.of > 1 and len(value) == measure.of:
            value = [value[layer] for layer in measure.layers]
        return [_number(name, each, measure) for each in value]
    return _number(name, value, measure)


def _per_layer(values: dict[int, dict[str, Any]], measure: _Measure) -> dict[str, Any]:
    """Settings of single layers."""
    small = {}
    for new, old in enumerate(measure.layers):
        if old in values:
            settings = values[old]
            small[str(new)] = {name: _part(name, settings[name], measure) for name in settings}
    return small


def _lists_layers(name: str, value: list[Any]) -> bool:
    """Numbers of layers, and not something of each layer."""
    rising = all(_is_count(each) for each in value) and sorted(set(value)) == value
    return rising and _LAYER_LISTS.search(name) is not None


def _rope(values: dict[str, Any], measure: _Measure) -> dict[str, Any]:
    """Lists have an item, or a share, for each frequency: as many fewer as heads are smaller."""
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            small[name] = _rope(value, measure)
        elif isinstance(value, list) and all(_is_count(each) for each in value):
            small[name] = [max(1, each // measure.divisor) for each in value]
        elif isinstance(value, list):
            small[name] = value[:: measure.divisor]
        else:
            small[name] = _number(name, value, measure)
    return small


def _number(name: str, value: Any, measure: _Measure) -> Any:
    """Anything else than a positive whole number stays."""
    if not _is_count(value) or value <= 0:
        return value
    if _LAYER_COUNTS.match(name):
        return min(value, len(measure.layers))
    if _HEAD_COUNTS.search(name):
        return _power_of_two(max(1, value * _HEADS // measure.heads))
    if _HEAD_SIZES.search(name):
        return max(1, value // measure.divisor)
    if _WIDTHS.match(name):
        return measure.width * value // measure.hidden
    return _bounded(name, value)


def _bounded(name: str, value: int) -> int:
    for pattern, largest in _LARGEST:
        if pattern.search(name):
            return min(value, largest)
    return LIMIT if value > _LARGE else value


def _measured(values: dict[Any, Any]) -> _Measure:
    counts = {str(name): value for name, value in values.items() if _is_count(value)}
    layers = max((value for name, value in counts.items() if _LAYER_COUNTS.match(name)), default=0)
    heads = max((value for name, value in counts.items() if _MAIN_HEADS.match(name)), default=1)
    hidden = next((value for name, value in counts.items() if _WIDTHS.match(name)), 0)
    size = counts.get("head_dim") or hidden // heads
    divisor = size // _HEAD_SIZE if size and size % _HEAD_SIZE == 0 else 1
    divided = size * heads == hidden  # the heads together are as wide as the layer
    return _Measure(
        layers=_kept_layers(values, layers),
        of=layers,
        heads=heads,
        divisor=divisor,
        hidden=max(1, hidden),
        width=_HEADS * (size // divisor) if divided else _WIDTH,
    )


def _kept_layers(values: dict[Any, Any], layers: int) -> tuple[int, ...]:
    """One layer of each kind, as the lists that describe every layer tell them apart; at least
    `_LAYERS`.
    """
    listed = [
        value
        for name, value in values.items()
        if isinstance(value, list) and _lists_layers(str(name), value)
    ]
    lists = [value for value in values.values() if isinstance(value, list) and value not in listed]
    lists = [value for value in lists if layers > 1 and len(value) == layers]
    kinds: dict[str, int] = {}
    for layer in range(layers):
        traits = [each[layer] for each in lists] + [layer in each for each in listed]
        kinds.setdefault(str(traits), layer)
    kept = set(kinds.values())
    for layer in range(layers):
        if len(kept) < _LAYERS:
            kept.add(layer)
    return tuple(sorted(kept))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _power_of_two(value: int) -> int:
    """The largest one up to `value`."""
    return 1 << (value.bit_length() - 1)
