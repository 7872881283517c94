"""Keys and values of the rows that are being computed, ended flush right so that all rows grow at the same place.

    row 0   . . . T h e   c a p i t a l     "." is padding, hidden by the attention mask
    row 1   H o w   m a n y   l e g s
            ^begin                  ^end

A newcomer is written into the next free row, a leaver's place is taken by the last row: each costs one row's copy
and never the whole batch's. The library's own DynamicCache copies everything at every token.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

_HEADROOM = 256  # tokens allocated ahead, so that a copy happens once in so many steps


class RowsLayer(DynamicLayer):
    """One attention layer. `keys` and `values` are views of larger buffers [rows, heads, tokens, size]."""

    keys: Any  # a tensor once the first step has come; the base class says "or None" everywhere
    values: Any
    begin = 0
    end = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends a step's keys and values (called by the model's attention) and returns all of them."""
        count = key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_buffer = key_states[:, :, :0]
            self.value_buffer = value_states[:, :, :0]
        rows = key_states.shape[0]
        self._reserve(rows, left=0, right=count)
        self.end += count
        self._expose(rows)
        self.keys[:, :, -count:] = key_states
        self.values[:, :, -count:] = value_states
        return self.keys, self.values

    def adopt(self, other: "RowsLayer") -> None:
        """Adds the rows of `other` below, right-aligned."""
        have, more = self.keys.shape[0], other.keys.shape[0]
        length, longer = (
            other.get_seq_length(),
            max(0, other.get_seq_length() - self.get_seq_length()),
        )
        self._reserve(have + more, left=longer, right=0)
        self.begin -= longer
        self._expose(have + more)
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine[:have, :, :longer] = 0  # hidden by the mask, but what is hidden must be finite
            mine[have:] = 0
            mine[have:, :, -length:] = theirs

    def remove(self, row: int) -> None:
        """The last row takes the place of `row`."""
        last = self.keys.shape[0] - 1
        if row != last:
            self.keys[row] = self.keys[last]
            self.values[row] = self.values[last]
        self._expose(last)

    def trim(self, tokens: int) -> None:
        """Forgets the first `tokens` columns, which are padding in every row."""
        self.begin += tokens
        self._expose(self.keys.shape[0])

    def _reserve(self, rows: int, left: int, right: int) -> None:
        """Makes room for `rows` rows, and for columns left of `begin` and right of `end`."""
        fits = (
            rows <= self.key_buffer.shape[0]
            and left <= self.begin
            and self.end + right <= self.key_buffer.shape[2]
        )
        if fits:
            return
        length = self.end - self.begin
        self.key_buffer = _grown(self.key_buffer, rows, self.begin, length, left, right)
        self.value_buffer = _grown(self.value_buffer, rows, self.begin, length, left, right)
        self.begin, self.end = left, left + length

    def _expose(self, rows: int) -> None:
        self.keys = self.key_buffer[:rows, :, self.begin : self.end]
        self.values = self.value_buffer[:rows, :, self.begin : self.end]


def _grown(
    buffer: torch.Tensor, rows: int, begin: int, length: int, left: int, right: int
) -> torch.Tensor:
    """A larger copy: `left` columns before what is used, `right` and some headroom after it."""
    have, heads, _, size = buffer.shape
    columns = left + length + right + _HEADROOM + length // 4
    larger = buffer.new_zeros((max(rows, have), heads, columns, size))
    larger[:have, :, left : left + length] = buffer[:, :, begin : begin + length]
    return larger


class RowsCache(Cache):
    """All layers; they are made as the model first asks for them."""

    layers: list[Any]  # of RowsLayer

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RowsLayer)

    @property
    def length(self) -> int:
        """Columns in use, padding included."""
        return self.get_seq_length()

    def adopt(self, other: "RowsCache") -> None:
        """Adds the rows of `other`."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.adopt(theirs)

    def remove(self, row: int) -> None:
        """The last row takes the place of `row`."""
        for layer in self.layers:
            layer.remove(row)

    def trim(self, tokens: int) -> None:
        """Forgets the first `tokens` columns."""
        for layer in self.layers:
            layer.trim(tokens)

    def bytes_per_token(self) -> int:
        """Memory that one column of one row takes."""
        used = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
        return int(used // max(1, self.length * self.layers[0].keys.shape[0]))
