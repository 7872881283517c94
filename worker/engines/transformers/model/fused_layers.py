"""Attention modules and gated MLPs in few operations, for a CPU: there a call costs more than what
it computes of a single row. Projections of one input are one product, and queries and keys are
rotated together. Each replacement is proved on a random input; what differs stays as it is.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.engines.transformers.model.attention import Bounds, attend_rows, attends_rows
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.fused_mlp import activation_name, agree
from worker.engines.transformers.model.fused_qkv import join, joinable
from worker.engines.transformers.model.kv_cache import attention_function
from worker.engines.transformers.model.linear_op import ACTIVATIONS
from worker.engines.transformers.model.packed_positions import counts_tokens
from worker.engines.transformers.model.perplexity import attention_of
from worker.engines.transformers.model.window import layer_window

Activation = Callable[[torch.Tensor], torch.Tensor]

_QKV = ("q_proj", "k_proj", "v_proj")
_GATED = ("gate_proj", "up_proj")
_RECORDER = "canopy_fused_layers"  # the attention function that records a call
_SAMPLES = 5  # tokens of the proof
_TOLERANCE = 1e-4  # of the largest number: sums in another order
_LOGITS_TOLERANCE = 1e-2  # after all layers

_local = threading.local()


class _Rotation(NamedTuple):
    """Of the latest step: every layer gets the same embeddings."""

    sin: torch.Tensor  # kept, so that no other tensor can become the same object
    cos: torch.Tensor  # [tokens, 1, size]
    signed_sin: torch.Tensor  # [tokens, 1, size]


class Replacement(NamedTuple):
    """A module that was replaced. Either call ends it."""

    parent: nn.Module
    attribute: str
    library: nn.Module

    def undo(self) -> None:
        """Puts the library's module back."""
        setattr(self.parent, self.attribute, self.library)

    def keep(self) -> None:
        """Frees the library's layers. The module itself stays what attention is computed for."""
        self.library._modules.clear()


class FusedAttention(nn.Module):
    """Stands where an attention module of the library stood, and calls the attention function in
    its name.
    """

    def __init__(self, library: Any, joined: nn.Module, call: dict[str, Any]) -> None:
        """`joined`: queries, keys and values as one product; `call`: what the library tells the
        attention function besides tensors.
        """
        super().__init__()
        self._library = (library,)  # in a tuple it is no submodule, whose layers would be converted
        self._call = call
        self._size: int = library.head_dim
        query, key, value = (getattr(library, name).out_features // self._size for name in _QKV)
        self._rotated = [query + key, value]
        self._heads = [query, key]
        self.joined = joined
        self.o_proj = library.o_proj
        # normalized before they are rotated
        self.q_norm: nn.Module | None = getattr(library, "q_norm", None)
        self.k_norm: nn.Module | None = getattr(library, "k_norm", None)
        self._window = layer_window(library, call.get("sliding_window"))
        scale = call.get("scaling")
        self._bounds = Bounds(
            self._size**-0.5 if scale is None else scale, self._window.tokens,
            call.get("softcap") or 0.0, call.get("s_aux"), self._window.chunked,
        )  # fmt: skip

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the library's: `hidden_states` [1, tokens, features]."""
        library = self._library[0]
        batch, tokens, _features = hidden_states.shape
        projected = self.joined.forward(hidden_states).view(batch, tokens, -1, self._size)
        heads, value = projected.split(self._rotated, 2)
        query, key = heads.split(self._heads, 2)
        if self.q_norm is not None and self.k_norm is not None:
            heads = torch.cat((self.q_norm(query), self.k_norm(key)), 2)
        query, key = _rotate(heads, *position_embeddings).split(self._heads, 2)
        if attends_rows(query, getattr(library, "key_cache", query)):
            out = attend_rows(query[0], key[0], value[0], library, self._bounds)
            return self.o_proj.forward(out.view(1, tokens, -1)), None
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, library.layer_idx)
        function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[library.config._attn_implementation]
        out, weights = function(library, query, key, value, attention_mask, **self._call)
        return self.o_proj.forward(out.reshape(batch, tokens, -1)), weights


class FusedGatedMLP(nn.Module):
    """Stands where an MLP with gate_proj, up_proj and down_proj stood."""

    def __init__(self, library: Any, joined: nn.Module, activation: Activation) -> None:
        """`joined`: gates and ups as one product."""
        super().__init__()
        self._activation = activation
        self.joined = joined
        self.down_proj = library.down_proj

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gates, ups = self.joined.forward(hidden).chunk(2, -1)
        output: torch.Tensor = self.down_proj.forward(self._activation(gates).mul_(ups))
        return output


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`heads` [batch, tokens, heads, size], `cos` and `sin` [1 or batch, tokens, size]."""
    half = heads.shape[-1] // 2
    latest: _Rotation | None = getattr(_local, "rotation", None)
    if latest is None or latest.sin is not sin:
        signed = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        latest = _local.rotation = _Rotation(sin, cos.unsqueeze(-2), signed.unsqueeze(-2))
    return torch.addcmul(heads * latest.cos, heads.roll(half, -1), latest.signed_sin)


@torch.inference_mode(mode=False)
@torch.no_grad()
def fuse_layers(model: Any, library_attention: str) -> list[Replacement]:
    """Replaces every attention module and MLP of float32 `model` that is computed so, whatever its
    name; none if the model then gives other logits. The weights of the library's modules become
    views of the joined ones. `library_attention`: to compute those logits with.
    """
    expected = _logits(model, library_attention)
    replacements: list[Replacement] = []
    try:
        for name, module in list(model.named_modules()):
            fused = _fused_mlp(module)
            if fused is None:
                fused = _fused_attention(model, module)
            if fused is not None:
                path, _, attribute = name.rpartition(".")
                replacements.append(Replacement(model.get_submodule(path), attribute, module))
                setattr(replacements[-1].parent, attribute, fused)
        # What a layer is given may differ from the proof's: angles for a part of a head alone.
        same = agree(_logits(model, library_attention), expected, _LOGITS_TOLERANCE)
    except UnsupportedModel:
        same = False
    if same:
        return replacements
    for replacement in replacements:
        replacement.undo()
    return []


def _logits(model: Any, library_attention: str) -> torch.Tensor | None:
    """Of a few tokens. None if the model takes other inputs."""
    ids = torch.arange(1, _SAMPLES + 1)[None]
    try:
        with attention_of(model, library_attention):
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    except Exception:  # each architecture fails in its own way; it is computed as it is then
        return None
    return logits


def shorten_lookups(model: Any) -> None:
    """Makes the submodules of every module plain attributes, too. Else each access first raises an
    error inside of Python, which takes as long as a small operation. Replacing one stays possible.
    """
    for module in model.modules():
        module.__dict__.update(module._modules)


def _fused_mlp(module: Any) -> nn.Module | None:
    """None if it is no such MLP, or does not give `module`'s answers."""
    layers = _joinable(module, _GATED)
    if not layers or not isinstance(getattr(module, "down_proj", None), nn.Module):
        return None
    activation = activation_name(module)
    if activation is None:
        return None
    if layers[0].out_features != layers[1].out_features:
        return None
    sample = _sample(layers[0].in_features)
    expected = _attempt(lambda: module(sample))
    fused = FusedGatedMLP(module, join(layers), ACTIVATIONS[activation])
    if not agree(_attempt(lambda: fused(sample)), expected, _TOLERANCE):
        return None
    _share_weights(layers, fused.joined)
    return fused


def _fused_attention(model: Any, module: Any) -> nn.Module | None:
    """None if it is no such attention, or does not give `module`'s answers."""
    layers = _joinable(module, _QKV)
    has_all = all(hasattr(module, name) for name in ("head_dim", "o_proj", "config", "layer_idx"))
    if not layers or not has_all or counts_tokens(module):
        return None
    if any(layer.out_features % module.head_dim for layer in layers):
        return None
    calls: list[tuple[tuple[torch.Tensor, ...], dict[str, Any]]] = []

    def record(
        _: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *__: Any, **call: Any
    ) -> tuple[torch.Tensor, None]:
        calls.append(((query, key, value), call))
        return query.transpose(1, 2).contiguous(), None

    sample = _sample(layers[0].in_features)
    angles = torch.linspace(-3, 3, _SAMPLES * module.head_dim).view(1, _SAMPLES, -1)
    embeddings = angles.cos(), angles.sin()

    def compute(attention: Any) -> torch.Tensor | None:
        def run() -> Any:
            return attention(
                hidden_states=sample, position_embeddings=embeddings, attention_mask=None
            )[0]

        return _attempt(run)

    with attention_function(model, _RECORDER, record):
        expected = compute(module)
        if len(calls) != 1:
            return None
        fused = FusedAttention(module, join(layers), calls[0][1])
        same = agree(compute(fused), expected, _TOLERANCE)
    if not same or len(calls) != 2 or calls[0][1] != calls[1][1]:
        return None
    tensors = zip(calls[1][0], calls[0][0], strict=True)
    if not all(agree(mine, theirs, _TOLERANCE) for mine, theirs in tensors):
        return None
    _share_weights(layers, fused.joined)
    return fused


def _joinable(module: Any, names: Sequence[str]) -> list[nn.Linear]:
    """The linear layers of those names; none if `join` does not take them."""
    layers: list[Any] = [getattr(module, name, None) for name in names]
    if not joinable(layers) or any(layer.weight.dtype != torch.float32 for layer in layers):
        return []
    return layers


def _share_weights(layers: list[nn.Linear], joined: nn.Module) -> None:
    """Nothing is kept twice: the weights of `layers` become views of the joined ones."""
    sizes = [layer.out_features for layer in layers]
    for name in ("weight", "bias"):
        parameter = getattr(joined, name)
        if parameter is not None:
            for layer, part in zip(layers, parameter.data.split(sizes), strict=True):
                setattr(layer, name, nn.Parameter(part, requires_grad=False))


def _sample(features: int) -> torch.Tensor:
    return torch.randn(1, _SAMPLES, features, generator=torch.Generator().manual_seed(1))


def _attempt(compute: Callable[[], Any]) -> torch.Tensor | None:
    """None if the module takes other inputs, or gives something else."""
    try:
        output = compute()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    return output if isinstance(output, torch.Tensor) else None
