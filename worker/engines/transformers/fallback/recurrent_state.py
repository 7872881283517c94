"""What layers without a cache of keys keep of padded rows: the state of a convolution, of a state
space or of linear attention, one for each row whatever its length.

The library multiplies padding by zero before such a layer, so a row's state begins where its tokens
do.
"""

from typing import Any

import torch
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from worker.engines.transformers.fallback.padded_layer import PaddedLayer
from worker.engines.transformers.model.errors import UnsupportedModel


class RecurrentLayer(LinearAttentionLayer):
    """One layer's states [rows, ...]. As in PaddedLayer, rows join below, and the last row takes
    the place of one that leaves.
    """

    def adopt(self, other: "RecurrentLayer") -> None:
        """Adds the rows of `other` below."""
        for own, others in self._pairs(other):
            for index, state in own.items():
                if state is not None:
                    own[index] = torch.cat((state, others[index]))

    def remove(self, row: int) -> None:
        """The last row takes the place of `row`."""
        for states, _ in self._pairs(self):
            for index, state in states.items():
                if state is not None:
                    state[row] = state[-1]
                    states[index] = state[:-1]

    def trim(self, tokens: int) -> None:
        """Padding has left nothing in a state."""

    def _pairs(self, other: "RecurrentLayer") -> list[tuple[dict[int, Any], dict[int, Any]]]:
        return [
            (self.conv_states, other.conv_states),
            (self.recurrent_states, other.recurrent_states),
        ]


class PaddedRecurrentLayer(RecurrentLayer, PaddedLayer):
    """A layer with both: an attention and a state beside it."""

    is_compileable = False

    def __init__(self, number_of_states: int = 1) -> None:
        PaddedLayer.__init__(self)
        LinearAttentionCacheLayerMixin.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """The library passes keys and values by position, states by name."""
        if args:
            PaddedLayer.lazy_initialization(self, *args)
        else:
            RecurrentLayer.lazy_initialization(self, **kwargs)

    def adopt(self, other: Any) -> None:
        """See both."""
        RecurrentLayer.adopt(self, other)
        PaddedLayer.adopt(self, other)

    def remove(self, row: int) -> None:
        """See both."""
        RecurrentLayer.remove(self, row)
        PaddedLayer.remove(self, row)

    def trim(self, tokens: int) -> None:
        """Of the attention."""
        PaddedLayer.trim(self, tokens)


class StatelessLayer(DummyLayer):
    """A layer that keeps nothing, such as experts that the library counts as a layer."""

    def adopt(self, other: Any) -> None:
        """Nothing to add."""

    def remove(self, row: int) -> None:
        """Nothing to move."""

    def trim(self, tokens: int) -> None:
        """Nothing to drop."""


def padded_layers(config: Any) -> list[Any] | None:
    """For a model of that config, where some of its layers keep a state; None if they all keep keys
    and values. Raises UnsupportedModel.
    """
    layers = DynamicCache(config=config).layers
    if not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        return None
    if not any(isinstance(layer, CacheLayerMixin) for layer in layers):
        raise UnsupportedModel("none of its layers counts tokens")
    return [_padded_layer(layer) for layer in layers]


def _padded_layer(layer: Any) -> Any:
    if type(layer) is LinearAttentionLayer:
        return RecurrentLayer(number_of_states=layer.number_of_states)
    if type(layer) is LinearAttentionAndFullAttentionLayer:
        return PaddedRecurrentLayer(number_of_states=layer.number_of_states)
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
        return PaddedLayer()  # the mask hides what is outside a window
    if type(layer) is DummyLayer:
        return StatelessLayer()
    raise UnsupportedModel(f"its cache has a {type(layer).__name__}")
