"""What a model's KV cache looks like, recorded from its own attention calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, PretrainedConfig

from worker.engines.transformers.model.block_groups import BlockGroups, group_layers
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.prefix_tiles import prefix_tile_rows
from worker.engines.transformers.model.window import Window, layer_window
from worker.errors import one_line

_RECORDER = "canopy_probe"  # the attention function that records the calls
_UNSUPPORTED_INPUTS = {"position_bias"}


class AttentionKind(NamedTuple):
    """What distinguishes the attention of one layer from that of another."""

    module: str  # its class
    windowed: bool
    chunked: bool
    softcapped: bool
    sinks: bool
    masked: bool


class KVCacheShape(NamedTuple):
    """What one layer keeps of a token: a key and a value for each head, both of `head_size`, the
    larger of their sizes.
    """

    kv_heads: int
    head_size: int


class KVScales(NamedTuple):
    """What one layer's keys and values are divided by before they are stored."""

    key: float
    value: float


class KVCacheLayout:
    """The attention modules of a model, in order, with what each keeps of a token."""

    def __init__(self, model: Any, context: int | None = None) -> None:
        """Runs one token through the model, which is left as it was. `context`: the most tokens of
        a sequence, where it is known; a layer whose window is as long has none. Raises
        UnsupportedModel.
        """
        self._context = context
        self.shapes: dict[Any, KVCacheShape] = {}  # by attention module
        self.devices: dict[Any, torch.device] = {}  # the same
        self.windows: dict[Any, Window] = {}  # the same
        self._groups: dict[Any, int] = {}  # query heads that share a key head; the same
        self.kinds: set[AttentionKind] = set()
        self.dtype: torch.dtype = model.dtype  # of keys and values; see `float8_cache`
        self.scales: dict[Any, KVScales] = {}  # by attention module, of float8 only
        with attention_function(model, _RECORDER, self._record):
            try:
                with torch.inference_mode():
                    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
                    model(input_ids=token, use_cache=False)
            except UnsupportedModel:
                raise
            except Exception as error:  # each architecture may fail in its own way
                raise UnsupportedModel(one_line(error)) from error
        layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
        if len(self.shapes) != layers:
            replaceable = f"{len(self.shapes)} of its {layers} layers"
            raise UnsupportedModel(f"a replaceable attention function in only {replaceable}")

    def query_heads(self, module: Any) -> int:
        """Of an attention module."""
        return self.shapes[module].kv_heads * self._groups[module]

    def _record(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Called by transformers, as `attention.attention_forward` is."""
        given = {name for name, argument in more.items() if argument is not None}
        unsupported = sorted(_UNSUPPORTED_INPUTS & given)
        if unsupported:
            raise UnsupportedModel(f"its attention takes {', '.join(unsupported)}")
        if key.shape[:-1] != value.shape[:-1]:
            raise UnsupportedModel("it has not as many values as keys")
        sinks = more.get("s_aux")
        if sinks is not None and sinks.shape != (query.shape[1],):
            raise UnsupportedModel("its attention sinks are not one for each head")
        window = layer_window(module, more.get("sliding_window"))
        if module in self.shapes:
            raise UnsupportedModel("a layer calls its attention twice, or shares it with another")
        if not getattr(module, "is_causal", True):
            raise UnsupportedModel("its attention is not causal")
        self.shapes[module] = KVCacheShape(
            kv_heads=key.shape[1], head_size=max(key.shape[3], value.shape[3])
        )
        self.devices[module] = key.device
        hides_some = self._context is None or window.tokens < self._context
        self.windows[module] = window if hides_some else Window()
        self._groups[module] = query.shape[1] // key.shape[1]
        kind = AttentionKind(
            module=type(module).__name__,
            windowed=window.tokens > 0,
            chunked=window.chunked,
            softcapped=bool(more.get("softcap")),
            sinks=sinks is not None,
            masked=attention_mask is not None,
        )
        self.kinds.add(kind)
        out = query.new_zeros(*query.shape[:3], value.shape[3])
        return out.transpose(1, 2).contiguous(), None

    @cached_property
    def block_groups(self) -> BlockGroups:
        """Of the layers, in order."""
        shapes = zip(self.shapes.values(), self.devices.values(), strict=True)
        return group_layers(list(self.windows.values()), list(shapes))

    @property
    def prefix_tile_rows(self) -> int:
        """For how many decoding rows the layers without a window read a shared prefix once; 0: they
        do not.
        """
        rows: list[int] = []
        for module, shape in self.shapes.items():
            if not self.windows[module].tokens:
                group, device = self._groups[module], self.devices[module]
                rows.append(prefix_tile_rows(shape.head_size, group, device))
        return min(rows, default=0)

    def bytes_per_token(self, dtype: torch.dtype, device: torch.device | None = None) -> int:
        """Memory that the keys and values of one token take: on `device`, or on all devices."""
        total = 0
        for module, shape in self.shapes.items():
            if device is None or self.devices[module] == device:
                total += 2 * shape.kv_heads * shape.head_size * dtype.itemsize
        return total


@contextmanager
def attention_function(
    model: Any, name: str, function: Callable[..., Any] | None = None
) -> Iterator[None]:
    """`model` uses the attention function of that name meanwhile. `function`: to register for so
    long; the registry outlives every model, and would keep alive what the function refers to.
    Raises UnsupportedModel.
    """
    before = _attention_functions(model)
    if function is not None:
        AttentionInterface.register(name, function)
    try:
        set_attention_function(model, name)
        yield
    finally:
        _restore(before)
        if function is not None:
            AttentionInterface.register(name, _unregistered)


def _unregistered(*_: Any, **__: Any) -> None:
    """In the place of a function that was registered for a while."""
    raise RuntimeError("this attention function is in use only while a model is loaded")


@contextmanager
def attention_restored_on_error(model: Any) -> Iterator[None]:
    """Whatever raises leaves `model` with the attention function that it has now."""
    before = _attention_functions(model)
    try:
        yield
    except BaseException:
        _restore(before)
        raise


def _attention_functions(model: Any) -> list[tuple[Any, str]]:
    """Of each config of the model."""
    return [(config, config._attn_implementation) for config in _configs(model)]


def _restore(functions: list[tuple[Any, str]]) -> None:
    for config, name in functions:
        config._attn_implementation_internal = name


def set_attention_function(model: Any, name: str) -> None:
    """`model` uses the attention function of that name. Raises UnsupportedModel."""
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise UnsupportedModel("its attention cannot be replaced")


def _configs(model: Any) -> list[Any]:
    """Every config that a part of the model reads, once."""
    by_id = {id(model.config): model.config}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            by_id[id(config)] = config
    for config in list(by_id.values()):
        text_config = config.get_text_config(decoder=True)
        by_id.setdefault(id(text_config), text_config)
    return list(by_id.values())
