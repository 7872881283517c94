"""Sequences that are computed one by one, by the steps of the library's own `generate`: for models
whose caches cannot be batched, cut or read in pieces (state spaces, convolutions, compressed keys).
Slow, and right by construction.

`generate` prepares a sequence (its kind of cache, mask and positions) and hands it to a decoding
method; ours keeps what was prepared, so that each further token can be computed when the scheduler
wants it. Some models read a sequence anew in the middle (Phi 3, where it outgrows its short rotary
factors): that, too, is in the library's own steps.
"""

import inspect
from collections.abc import Sequence as Many
from typing import Any

import torch

from worker.engines.transformers.sequence import Sequence


class AloneRow:
    """One sequence with its cache, whatever that is."""

    def __init__(self, model: Any, tokens: list[int]) -> None:
        self._model = model
        self._tokens = torch.tensor([tokens], device=model.device)
        self._prepared: dict[str, Any] = {}  # what `generate` would hand from step to step

    def read(self) -> torch.Tensor:
        """Reads the prompt; logits [vocabulary] after it."""
        self._prepared = _prepare(self._model, self._tokens)
        output = self._forward(is_first_iteration=True, next_sequence_length=self._tokens.shape[1])
        return self._logits(output)

    def step(self, token: int) -> torch.Tensor:
        """Appends a token; logits [vocabulary] after it."""
        if not self._prepared:
            raise RuntimeError("the prompt has not been read")
        newest = torch.tensor([[token]], device=self._tokens.device)
        self._tokens = torch.cat([self._tokens, newest], dim=1)
        output = self._forward(next_sequence_length=1 if self._prepared["use_cache"] else None)
        return self._logits(output)

    def _forward(self, **how: Any) -> Any:
        inputs = self._model.prepare_inputs_for_generation(self._tokens, **how, **self._prepared)
        return self._model(**inputs, return_dict=True)

    def _logits(self, output: Any) -> torch.Tensor:
        self._prepared = self._model._update_model_kwargs_for_generation(output, self._prepared)
        logits: torch.Tensor = output.logits[0, -1]
        return logits.clone()  # the others, of a long prompt, need not be kept


class AloneBatch:
    """Rows that are computed one after the other; see `Batch`, whose place it takes."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._alone: list[AloneRow] = []
        self.rows: list[Sequence] = []

    def step(self, tokens: Many[list[int]]) -> torch.Tensor:
        """Appends one token to every row; returns the logits after it [rows, vocabulary]."""
        return torch.stack(
            [row.step(token) for row, [token] in zip(self._alone, tokens, strict=True)]
        )

    def start(self, rows: list[Sequence], alone: list[AloneRow]) -> None:
        """The first rows of an empty batch, in the same order."""
        self.rows, self._alone = rows, alone

    def adopt(self, other: "AloneBatch") -> None:
        """Takes over all rows of `other`, which is not used again."""
        self.rows += other.rows
        self._alone += other._alone

    def clear(self) -> None:
        """Empty again."""
        self.rows, self._alone = [], []

    def remove_finished(self) -> None:
        """Drops rows that have ended, with their memory."""
        staying = [row for row, sequence in enumerate(self.rows) if not sequence.finished]
        self.rows = [self.rows[row] for row in staying]
        self._alone = [self._alone[row] for row in staying]


class AlonePrefill:
    """A newcomer whose prompt is read in one piece: these models cannot all go on in the middle of
    one.
    """

    def __init__(self, model: Any, rows: list[Sequence]) -> None:
        self.done = False
        self.batch = AloneBatch(model)
        self.batch.start(rows, [AloneRow(model, row.ids) for row in rows])

    def advance(self, budget: int) -> torch.Tensor | None:
        """Reads the prompts, however long; returns the logits after them."""
        logits = torch.stack([row.read() for row in self.batch._alone])
        self.done = True
        return logits


def bytes_per_token(model: Any) -> int:
    """By how much a sequence's memory grows with a token. Raises whatever the model raises."""
    sizes = []
    for length in (8, 16):
        row = AloneRow(model, [0] * length)
        row.read()
        row.step(0)
        sizes.append(_bytes_of(row._prepared, set()))
    return max(0, sizes[1] - sizes[0]) // 8


def _bytes_of(held: Any, seen: set[int]) -> int:
    """Of all tensors in there; a cache may be of any class."""
    if id(held) in seen or isinstance(held, torch.nn.Module):
        return 0
    seen.add(id(held))
    if isinstance(held, torch.Tensor):
        return held.nbytes
    if isinstance(held, dict):
        parts = list(held.values())
    elif isinstance(held, list | tuple):
        parts = list(held)
    else:
        parts = list(getattr(held, "__dict__", {}).values())
    return sum(_bytes_of(part, seen) for part in parts)


def _prepare(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """What `generate` prepares for a sequence before its first step."""
    prepared: dict[str, Any] = {}

    def keep(_: Any, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        prepared.update(given)
        return input_ids

    accepted = inspect.signature(model.forward).parameters
    mask = (
        {"attention_mask": torch.ones_like(tokens)} if "attention_mask" in accepted else {}
    )  # no token is padding
    model.generate(
        tokens, custom_generate=keep, do_sample=False, max_new_tokens=1, pad_token_id=0, **mask
    )
    for name in (
        "logits_processor",
        "stopping_criteria",
        "generation_config",
    ):  # of the loop, not of a step
        del prepared[name]
    return prepared
