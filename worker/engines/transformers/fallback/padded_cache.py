"""The cache of padded rows that are computed together: of keys and values (`padded_layer`), of
states (`recurrent_state`), or of both.
"""

from typing import Any

from transformers.cache_utils import Cache

from worker.engines.transformers.fallback.padded_layer import PaddedLayer
from worker.engines.transformers.fallback.recurrent_state import padded_layers


class PaddedCache(Cache):
    """All layers, each of keys and values or of a state."""

    layers: list[Any]  # of PaddedLayer, RecurrentLayer

    def __init__(self, config: Any) -> None:
        """For a model of that config. Raises UnsupportedModel."""
        layers = padded_layers(config)
        if layers is None:  # the library makes them as the model first asks for them
            super().__init__(layer_class_to_replicate=PaddedLayer)
        else:
            super().__init__(layers=layers)

    @property
    def length(self) -> int:
        """Columns in use, padding included."""
        return self.get_seq_length()

    def adopt(self, other: "PaddedCache") -> None:
        """Adds the rows of `other`."""
        for layer, other_layer in zip(self.layers, other.layers, strict=True):
            layer.adopt(other_layer)

    def remove(self, row: int) -> None:
        """The last row takes the place of `row`."""
        for layer in self.layers:
            layer.remove(row)

    def trim(self, tokens: int) -> None:
        """Drops the first `tokens` columns."""
        for layer in self.layers:
            layer.trim(tokens)

    def bytes_per_token(self) -> int:
        """Memory that one column of one row takes; states do not grow."""
        columns = 0
        for layer in self.layers:
            if isinstance(layer, PaddedLayer):
                columns += layer.keys[0, :, 0].nbytes + layer.values[0, :, 0].nbytes
        return columns
