"""One sequence at a time, by the steps of the library's own `generate`: for models whose caches
cannot be batched, cut or prefilled in chunks (pure state spaces, compressed keys). Slow,
and right by construction.

`generate` prepares a sequence (its kind of cache, mask and positions) and hands it to a decoding
method. Ours keeps what was prepared, so that the scheduler decides when a token is computed. Some
models compute a sequence again in the middle (Phi 3, where it outgrows its short rotary factors):
that, too, is in the library's own steps.
"""

import inspect
from typing import Any, Self

import torch

from worker.engines.transformers.sequence import Sequence

_LOOP_ARGUMENTS = ("logits_processor", "stopping_criteria", "generation_config")


class GenerateSteps:
    """One sequence with its cache, whatever that is."""

    def __init__(self, model: Any, tokens: list[int]) -> None:
        self._model = model
        self._tokens = torch.tensor([tokens], device=model.device)
        self._prepared: dict[str, Any] = {}  # what `generate` passes from step to step

    def prefill(self) -> torch.Tensor:
        """Computes the prompt. Returns logits [vocabulary] after it."""
        self._prepared = _prepare(self._model, self._tokens)
        return self._forward(is_first_iteration=True, next_sequence_length=self._tokens.shape[1])

    def step(self, token: int) -> torch.Tensor:
        """Appends a token. Returns logits [vocabulary] after it."""
        if not self._prepared:
            raise RuntimeError("the prompt is not computed yet")
        newest = torch.tensor([[token]], device=self._tokens.device)
        self._tokens = torch.cat([self._tokens, newest], dim=1)
        tokens_to_compute = None  # all of them
        if self._prepared["use_cache"]:
            tokens_to_compute = 1
        return self._forward(next_sequence_length=tokens_to_compute)

    def state_bytes(self) -> int:
        """Memory of all tensors that are kept between steps."""
        return _bytes_in(self._prepared, set())

    def _forward(self, **arguments: Any) -> torch.Tensor:
        inputs = self._model.prepare_inputs_for_generation(
            self._tokens, **arguments, **self._prepared
        )
        output = self._model(**inputs, return_dict=True)
        self._prepared = self._model._update_model_kwargs_for_generation(output, self._prepared)
        logits: torch.Tensor = output.logits[0, -1]
        return logits.clone()  # the rest, of a long prompt, can be freed


class SequentialBatch:
    """A RowBatch whose rows are computed one after the other."""

    def __init__(self, model: Any, rows: list[Sequence]) -> None:
        self.rows = rows
        self._steps = [GenerateSteps(model, row.ids) for row in rows]
        self.prefilled = False

    def prefill(self, budget: int) -> torch.Tensor | None:
        """Computes the prompts, however long: some of these models cannot stop in the middle."""
        logits = torch.stack([steps.prefill() for steps in self._steps])
        self.prefilled = True
        return logits

    def step(self) -> torch.Tensor:
        """Computes the newest token of every row. Returns logits [rows, vocabulary]."""
        logits: list[torch.Tensor] = []
        for steps, row in zip(self._steps, self.rows, strict=True):
            logits.append(steps.step(row.last_token))
        return torch.stack(logits)

    def adopt(self, other: Self) -> None:
        """Takes over all rows of `other`, which is not used again."""
        self.rows += other.rows
        self._steps += other._steps

    def remove_finished(self) -> None:
        """Drops rows that have ended, with their memory."""
        rows: list[Sequence] = []
        row_steps: list[GenerateSteps] = []
        for row, steps in zip(self.rows, self._steps, strict=True):
            if not row.finished:
                rows.append(row)
                row_steps.append(steps)
        self.rows, self._steps = rows, row_steps


def bytes_per_token(model: Any) -> int:
    """By how much a sequence's memory grows with a token. Raises whatever the model raises."""
    grown = _bytes_after(model, 16) - _bytes_after(model, 8)
    return max(0, grown) // 8


def _bytes_after(model: Any, length: int) -> int:
    steps = GenerateSteps(model, [0] * length)
    steps.prefill()
    steps.step(0)
    return steps.state_bytes()


def _bytes_in(state: Any, seen: set[int]) -> int:
    """Of all tensors in there; a cache may be of any class."""
    if id(state) in seen or isinstance(state, torch.nn.Module):
        return 0
    seen.add(id(state))
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        parts = list(state.values())
    elif isinstance(state, list | tuple):
        parts = list(state)
    else:
        parts = list(getattr(state, "__dict__", {}).values())
    return sum(_bytes_in(part, seen) for part in parts)


def _prepare(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """What `generate` prepares for a sequence before its first step."""
    prepared: dict[str, Any] = {}

    def keep(_: Any, input_ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        prepared.update(arguments)
        return input_ids

    mask = {}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        mask["attention_mask"] = torch.ones_like(tokens)  # no token is padding
    model.generate(
        tokens, custom_generate=keep, do_sample=False, max_new_tokens=1, pad_token_id=0, **mask
    )
    for name in _LOOP_ARGUMENTS:  # of the decoding loop, not of a step
        del prepared[name]
    return prepared
