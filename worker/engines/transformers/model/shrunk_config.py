"""A small config of the same architecture: the same code, few weights, and every window, chunk and
limit in it a few tokens wide, so that a short sequence reaches beyond all of them.

Names differ between architectures, and a window may have any name. So it works the other way round:
a known size keeps its proportions, and **every other large number counts as a limit** and is made
small.
"""

import copy
import re
from typing import Any, NamedTuple

LIMIT = 8  # tokens: what windows, chunks and the like become
ORIGINAL = 16  # tokens: the length beyond which a scaled rotary embedding changes
POSITIONS = 128  # the model's own context
_HEADS, _LAYERS, _WIDTH = 4, 2, 64
_HEAD_SIZE = 16
_LARGE = 32  # a number up to it is a count or a period, and stays

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


class _Scale(NamedTuple):
    """How the numbers of one level of a config are scaled."""

    kept_layers: tuple[int, ...]  # indices, of `layers`
    layers: int
    heads: int  # before
    divisor: int  # of what belongs to a head
    hidden_size: int  # before
    new_hidden_size: int


def shrunk(config: Any) -> Any:
    """A small config of `config`'s class. Raises what that class raises about it."""
    return type(config).from_dict(_shrink(copy.deepcopy(config.to_dict())))


def _shrink(values: dict[Any, Any], parent: _Scale | None = None) -> dict[Any, Any]:
    """`parent`: the scale of the enclosing level, for a level without heads of its own."""
    has_heads = any(_MAIN_HEADS.match(str(name)) for name in values)
    if parent is None or has_heads:
        scale = _scale(values)
    else:
        scale = parent
    small = _shrink_values(values, scale)
    if "dynamic" in str(small.get("rope_parameters")):  # changes from the model's own length on
        for name in small:
            if _POSITIONS.match(str(name)):
                small[name] = ORIGINAL
    return small


def _shrink_values(values: dict[Any, Any], scale: _Scale) -> dict[Any, Any]:
    return {name: _shrink_value(str(name), value, scale) for name, value in values.items()}


def _shrink_value(name: str, value: Any, scale: _Scale) -> Any:
    if isinstance(value, list):
        return _shrink_list(name, value, scale)
    if not isinstance(value, dict):
        return _shrink_number(name, value, scale)
    if name == "per_layer_config":
        return _shrink_layer_settings(value, scale)
    if name in ("rope_parameters", "rope_scaling"):
        return _shrink_rope(value, scale)
    return _shrink(value, scale)


def _shrink_list(name: str, values: list[Any], scale: _Scale) -> list[Any]:
    if _lists_layers(name, values):
        return [new for new, old in enumerate(scale.kept_layers) if old in values]
    if scale.layers > 1 and len(values) == scale.layers:
        values = [values[layer] for layer in scale.kept_layers]
    return [_shrink_number(name, value, scale) for value in values]


def _shrink_layer_settings(values: dict[Any, dict[str, Any]], scale: _Scale) -> dict[str, Any]:
    """The settings of single layers, by their indices."""
    small = {}
    for layer, settings in values.items():
        if int(layer) in scale.kept_layers:
            new_index = scale.kept_layers.index(int(layer))
            small[str(new_index)] = _shrink_values(settings, scale)
    return small


def _lists_layers(name: str, values: list[Any]) -> bool:
    """Whether it lists indices of layers, and not something of every layer."""
    are_counts = all(_is_count(value) for value in values)
    return are_counts and sorted(set(values)) == values and _LAYER_LISTS.search(name) is not None


def _shrink_rope(values: dict[str, Any], scale: _Scale) -> dict[str, Any]:
    """Lists have an item, or a share, per frequency: as many fewer as heads are smaller."""
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            small[name] = _shrink_rope(value, scale)
        elif isinstance(value, list) and all(_is_count(item) for item in value):
            small[name] = [max(1, item // scale.divisor) for item in value]
        elif isinstance(value, list):
            small[name] = value[:: scale.divisor]
        else:
            small[name] = _shrink_number(name, value, scale)
    return small


def _shrink_number(name: str, value: Any, scale: _Scale) -> Any:
    """Anything but a positive integer stays."""
    if not _is_count(value) or value <= 0:
        return value
    if _LAYER_COUNTS.match(name):
        return min(value, len(scale.kept_layers))
    if _HEAD_COUNTS.search(name):
        return _power_of_two(max(1, value * _HEADS // scale.heads))
    if _HEAD_SIZES.search(name):
        return max(1, value // scale.divisor)
    if _WIDTHS.match(name):
        return scale.new_hidden_size * value // scale.hidden_size
    return _capped(name, value)


def _capped(name: str, value: int) -> int:
    for pattern, largest in _LARGEST:
        if pattern.search(name):
            return min(value, largest)
    if value > _LARGE:
        return LIMIT
    return value


def _scale(values: dict[Any, Any]) -> _Scale:
    counts = {str(name): value for name, value in values.items() if _is_count(value)}
    layers = max(_matching(counts, _LAYER_COUNTS), default=0)
    heads = max(_matching(counts, _MAIN_HEADS), default=1)
    hidden_size = next(iter(_matching(counts, _WIDTHS)), 0)
    head_size = counts.get("head_dim") or hidden_size // heads
    divisor = 1
    if head_size and head_size % _HEAD_SIZE == 0:
        divisor = head_size // _HEAD_SIZE
    new_hidden_size = _WIDTH
    if head_size * heads == hidden_size:  # heads fill the layer
        new_hidden_size = _HEADS * (head_size // divisor)
    return _Scale(
        kept_layers=_kept_layers(values, layers),
        layers=layers,
        heads=heads,
        divisor=divisor,
        hidden_size=max(1, hidden_size),
        new_hidden_size=new_hidden_size,
    )


def _matching(counts: dict[str, int], pattern: re.Pattern[str]) -> list[int]:
    return [value for name, value in counts.items() if pattern.match(name)]


def _kept_layers(values: dict[Any, Any], layers: int) -> tuple[int, ...]:
    """One layer of each kind, as the lists that describe every layer tell them apart; at least
    `_LAYERS`.
    """
    index_lists: list[list[Any]] = []  # of layers that have some trait
    trait_lists: list[list[Any]] = []  # with a trait of every layer
    for name, value in values.items():
        if not isinstance(value, list):
            continue
        if _lists_layers(str(name), value):
            index_lists.append(value)
        elif layers > 1 and len(value) == layers:
            trait_lists.append(value)
    first_of_kind: dict[str, int] = {}
    for layer in range(layers):
        kind: list[Any] = [layer in indices for indices in index_lists]
        for traits in trait_lists:
            if traits not in index_lists:
                kind.append(traits[layer])
        first_of_kind.setdefault(str(kind), layer)
    kept = set(first_of_kind.values())
    for layer in range(layers):
        if len(kept) < _LAYERS:
            kept.add(layer)
    return tuple(sorted(kept))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _power_of_two(value: int) -> int:
    """The largest one up to `value`."""
    return 1 << (value.bit_length() - 1)
