"""Keys and values of padded rows, flush right so that all rows grow in the same column.

    row 0   . . . T h e   c a p i t a l     "." is padding, hidden by the attention mask
    row 1   H o w   m a n y   l e g s
            ^begin                  ^end

A newcomer is written into the next free row, and the last row takes the place of one that leaves:
each costs one row's copy, never the whole batch's. The library's DynamicCache copies everything at
every token.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

_HEADROOM = 256  # tokens allocated ahead, so that a copy happens once in so many steps


class PaddedLayer(DynamicLayer):
    """One attention layer. `keys` and `values` are views of larger buffers [rows, heads, tokens,
    head size].
    """

    keys: Any  # a tensor after the first step; the base class says "or None" everywhere
    values: Any
    begin = 0
    end = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Called for the first step's keys and values."""
        super().lazy_initialization(key_states, value_states)
        self._key_buffer = key_states[:, :, :0]
        self._value_buffer = value_states[:, :, :0]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends a step's keys and values, and returns all of them; called by the model."""
        rows, _, count, _ = key_states.shape
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._reserve(rows, left=0, right=count)
        self.end += count
        self._expose(rows)
        self.keys[:, :, -count:] = key_states
        self.values[:, :, -count:] = value_states
        return self.keys, self.values

    def adopt(self, other: "PaddedLayer") -> None:
        """Adds the rows of `other` below, right-aligned."""
        rows, length = self.keys.shape[0], other.get_seq_length()
        all_rows = rows + other.keys.shape[0]
        longer = max(0, length - self.get_seq_length())
        self._reserve(all_rows, left=longer, right=0)
        self.begin -= longer
        self._expose(all_rows)
        for own, others in ((self.keys, other.keys), (self.values, other.values)):
            own[:rows, :, :longer] = 0  # masked, but NaN would come through a mask
            own[rows:] = 0
            own[rows:, :, -length:] = others

    def remove(self, row: int) -> None:
        """The last row takes the place of `row`."""
        last = self.keys.shape[0] - 1
        if row != last:
            self.keys[row] = self.keys[last]
            self.values[row] = self.values[last]
        self._expose(last)

    def trim(self, tokens: int) -> None:
        """Drops the first `tokens` columns, which are padding in every row."""
        self.begin += tokens
        self._expose(self.keys.shape[0])

    def _reserve(self, rows: int, left: int, right: int) -> None:
        """Makes room for `rows` rows, and for columns left of `begin` and right of `end`."""
        have_rows, _, columns, _ = self._key_buffer.shape
        if rows <= have_rows and left <= self.begin and self.end + right <= columns:
            return
        length = self.end - self.begin
        self._key_buffer = _grown(self._key_buffer, rows, self.begin, length, left, right)
        self._value_buffer = _grown(self._value_buffer, rows, self.begin, length, left, right)
        self.begin, self.end = left, left + length

    def _expose(self, rows: int) -> None:
        self.keys = self._key_buffer[:rows, :, self.begin : self.end]
        self.values = self._value_buffer[:rows, :, self.begin : self.end]


def _grown(
    buffer: torch.Tensor, rows: int, begin: int, length: int, left: int, right: int
) -> torch.Tensor:
    """A larger copy: `left` columns before those in use, `right` and some headroom after them."""
    have_rows, heads, _, size = buffer.shape
    columns = left + length + right + _HEADROOM + length // 4
    larger = buffer.new_zeros((max(rows, have_rows), heads, columns, size))
    larger[:have_rows, :, left : left + length] = buffer[:, :, begin : begin + length]
    return larger
