"""Rows that go through the model together. Rows join and leave between steps; newcomers read their prompts before."""

from collections.abc import Sequence as Many
from typing import Any

import torch

from worker.engines.transformers.fallback.cache import RowsCache
from worker.engines.transformers.sequence import Sequence


class Batch:
    """Sequences with their keys and values, and the forward pass over them.

    Every row ends in the same column; `_pads` says in which column it begins. The library builds causal and
    sliding-window masks from that padding, so each architecture's own masking stays the library's business.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = RowsCache()
        self._pads: list[int] = []
        self.rows: list[Sequence] = []

    def step(self, tokens: Many[list[int]]) -> torch.Tensor:
        """Appends equally many tokens to every row; returns the logits after the last one [rows, vocabulary]."""
        count = len(tokens[0])
        ids = torch.tensor(tokens, device=self._model.device)
        pads = torch.tensor(self._pads, device=ids.device)[:, None]
        columns = torch.arange(self._cache.length + count, device=ids.device)
        output = self._model(
            input_ids=ids,
            attention_mask=(columns >= pads).long() if any(self._pads) else None,
            position_ids=(columns[-count:] - pads).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1]

    def start(self, rows: list[Sequence], pads: list[int]) -> None:
        """The first rows of an empty batch; `pads` is the padding that the caller puts before each."""
        self.rows, self._pads = rows, pads

    def adopt(self, other: "Batch") -> None:
        """Takes over all rows of `other`, which is not used again."""
        if not other.rows:
            return
        if not self.rows:
            self._cache, self._pads, self.rows = other._cache, other._pads, other.rows
            return
        mine, theirs = self._cache.length, other._cache.length
        longest = max(mine, theirs)
        self._pads = [pad + longest - mine for pad in self._pads] + [
            pad + longest - theirs for pad in other._pads
        ]
        self.rows += other.rows  # before the copying: if memory runs out, all of them fail together
        self._cache.adopt(other._cache)

    def clear(self) -> None:
        """Empty again, with a fresh cache."""
        self._cache, self._pads, self.rows = RowsCache(), [], []

    def remove_finished(self) -> None:
        """Drops rows that have ended; memory goes back when the last one leaves."""
        leaving = [row for row, sequence in enumerate(self.rows) if sequence.finished]
        if len(leaving) == len(self.rows):
            self.clear()
            return
        for row in reversed(leaving):
            self._cache.remove(row)
            self._pads[row], self.rows[row] = self._pads[-1], self.rows[-1]
            self._pads.pop()
            self.rows.pop()
        if leaving and (common := min(self._pads)):
            self._cache.trim(common)
            self._pads = [pad - common for pad in self._pads]

    def bytes_per_token(self) -> int:
        """Memory that one token of one row takes, known after the first step."""
        return self._cache.bytes_per_token()


class Prefill:
    """Newcomers whose prompts are being read, a bounded number of tokens at a time, so that nobody waits long."""

    def __init__(self, model: Any, rows: list[Sequence]) -> None:
        self._longest = max(len(row.ids) for row in rows)
        pads = [self._longest - len(row.ids) for row in rows]
        self._tokens = [[0] * pad + row.ids for pad, row in zip(pads, rows, strict=True)]
        self._read = 0
        self.batch = Batch(model)
        self.batch.start(rows, pads)

    def advance(self, budget: int) -> torch.Tensor | None:
        """Reads up to `budget` tokens; returns the logits once the prompts are read."""
        upto = self._read + max(1, budget // len(self._tokens))
        logits = self.batch.step([row[self._read : upto] for row in self._tokens])
        self._read = upto
        return logits if self.done else None

    @property
    def done(self) -> bool:
        """Whether every prompt is read to its end."""
        return self._read >= self._longest
