"""Padded rows that go through the model together, by the library's own attention. Rows join and
leave between steps; newcomers are prefilled in a batch of their own before.
"""

from collections.abc import Sequence as Many
from typing import Any, Self

import torch

from worker.engines.transformers.fallback.padded_cache import PaddedCache
from worker.engines.transformers.sequence import Sequence


class PaddedBatch:
    """A RowBatch whose rows all end in the same column; `_pads` says in which column each begins.

    The library builds causal and sliding-window masks from that padding, so each architecture's own
    masking stays the library's business.
    """

    def __init__(self, model: Any, rows: list[Sequence]) -> None:
        self._model = model
        self._cache = PaddedCache(self._model.config)
        self.rows = rows
        longest = max((len(row.ids) for row in rows), default=0)
        self._pads: list[int] = []
        self._unread: list[list[int]] = []  # tokens that are not prefilled yet, padding included
        for row in rows:
            pad = longest - len(row.ids)
            self._pads.append(pad)
            self._unread.append([0] * pad + row.ids)

    @property
    def prefilled(self) -> bool:
        """Whether every prompt is computed to its end."""
        return not any(self._unread)

    def prefill(self, budget: int) -> torch.Tensor | None:
        """Computes up to `budget` tokens of the prompts; logits once they are done."""
        count = max(1, budget // len(self.rows))
        logits = self._forward([tokens[:count] for tokens in self._unread])
        self._unread = [tokens[count:] for tokens in self._unread]
        if not self.prefilled:
            return None
        return logits

    def step(self) -> torch.Tensor:
        """Computes the newest token of every row. Returns logits [rows, vocabulary]."""
        return self._forward([[row.last_token] for row in self.rows])

    def adopt(self, other: Self) -> None:
        """Takes over all rows of `other`, which is not used again."""
        if not other.rows:
            return
        if not self.rows:
            self._cache, self._pads, self.rows = other._cache, other._pads, other.rows
            return
        own_length, other_length = self._cache.length, other._cache.length
        longest = max(own_length, other_length)
        self._pads = _shifted(self._pads, longest - own_length)
        self._pads += _shifted(other._pads, longest - other_length)
        self.rows += other.rows  # before the copy: if memory runs out, all of them fail together
        self._cache.adopt(other._cache)

    def remove_finished(self) -> None:
        """Drops rows that have ended; memory is freed when the last one leaves."""
        count = len(self.rows)
        if all(row.finished for row in self.rows):
            self._cache, self._pads, self.rows = PaddedCache(self._model.config), [], []
            return
        for index in reversed(range(count)):  # the last row, which moves here, was looked at before
            if self.rows[index].finished:
                self._cache.remove(index)
                self._pads[index], self.rows[index] = self._pads[-1], self.rows[-1]
                self._pads.pop()
                self.rows.pop()
        common = min(self._pads)
        if len(self.rows) < count and common:
            self._cache.trim(common)
            self._pads = _shifted(self._pads, -common)

    def _forward(self, tokens: Many[list[int]]) -> torch.Tensor:
        """Appends equally many tokens to every row; logits [rows, vocabulary] after the last."""
        count = len(tokens[0])
        ids = torch.tensor(tokens, device=self._model.device)
        pads = torch.tensor(self._pads, device=ids.device)[:, None]
        columns = torch.arange(self._cache.length + count, device=ids.device)
        mask = None
        if any(self._pads):
            mask = (columns >= pads).long()
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(columns[-count:] - pads).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1]


def _shifted(pads: list[int], columns: int) -> list[int]:
    return [pad + columns for pad in pads]


def bytes_per_token(model: Any) -> int:
    """Memory that one token of one row takes. Raises whatever the model raises."""
    cache = PaddedCache(model.config)
    token = torch.tensor([[0]], device=model.device)
    position = torch.zeros_like(token)
    model(
        input_ids=token,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache.bytes_per_token()
