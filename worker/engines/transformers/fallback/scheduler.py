"""Schedules models without a runner: rows that grow together (`padded`), or one by one where their
caches do not allow that (`sequential`).
"""

from collections import deque
from typing import Protocol, Self

import torch

from worker.engines.transformers.fallback.padded import PaddedBatch
from worker.engines.transformers.fallback.prompt_logits import prompt_logits
from worker.engines.transformers.fallback.sequential import SequentialBatch
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.output_processor import OutputProcessor
from worker.engines.transformers.sampling.prompt_logprobs import rows_at_once
from worker.engines.transformers.sampling.sampler import Sampler
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence, SequenceStatus


class RowBatch(Protocol):
    """Sequences with their caches, and the forward pass over them."""

    rows: list[Sequence]

    @property
    def prefilled(self) -> bool:
        """Whether every prompt is computed to its end."""

    def prefill(self, budget: int) -> torch.Tensor | None:
        """Computes about `budget` tokens of the prompts; logits [rows, vocabulary] once all are
        done.
        """

    def step(self) -> torch.Tensor:
        """Computes the newest token of every row. Returns logits [rows, vocabulary]."""

    def adopt(self, other: Self) -> None:
        """Takes over all rows of `other`, which is not used again."""

    def remove_finished(self) -> None:
        """Drops rows that have ended."""


class FallbackScheduler:
    """A `Scheduler` over the library's own attention and cache."""

    def __init__(self, loaded: LoadedModel, slots: int) -> None:
        self._loaded = loaded
        self._slots = slots
        self._waiting: deque[Sequence] = deque()
        self._prefilling: RowBatch | None = None
        self._running: RowBatch = self._batch([])
        device = torch.device(loaded.model.device)
        self._logits_rows = rows_at_once(loaded.vocabulary, device)
        self._sampler = Sampler(slots, loaded.vocabulary, device)
        self._output = OutputProcessor()

    def _batch(self, rows: list[Sequence]) -> RowBatch:
        if self._loaded.batched:
            return PaddedBatch(self._loaded.model, rows)
        return SequentialBatch(self._loaded.model, rows)

    @property
    def has_work(self) -> bool:
        """There is something to compute."""
        return bool(self._waiting or self._prefilling or self._running.rows)

    @property
    def reuse(self) -> tuple[int, int]:
        """No prompt is kept beyond its answer."""
        return 0, 0

    @property
    def usable_slots(self) -> int:
        """All: rows grow as they need to."""
        return self._slots

    @property
    def not_finite(self) -> int:
        """Answers that ended because the model's logits were not finite."""
        return self._output.not_finite

    @property
    def delay(self) -> float:
        """See Scheduler: nothing is queued ahead."""
        return 0.0

    def add(self, sequence: Sequence) -> None:
        """Takes a prepared sequence in."""
        self._waiting.append(sequence)

    def unfinished(self) -> list[Sequence]:
        """All that have not ended."""
        return list(self._waiting) + self._prefilling_rows() + self._running.rows

    def step(self) -> StepOutput:
        """A bounded part of the newcomers' prompts, then a token for every running row."""
        self._start_prefill()
        self._advance_prefill()
        self._decode()
        return self._output.take()

    def take_output(self) -> StepOutput:
        """What came of a step that was broken off."""
        return self._output.take()

    def _start_prefill(self) -> None:
        """Takes as many waiting sequences as have slots and fit into one pass; a long prompt goes
        alone.
        """
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.finished)
        room = self._slots - len(self._running.rows)
        if self._prefilling or not self._waiting or room <= 0:
            return
        rows = [self._waiting.popleft()]
        longest = len(rows[0].ids)
        while self._waiting and len(rows) < room and self._loaded.batched:
            longest = max(longest, len(self._waiting[0].ids))
            if longest * (len(rows) + 1) > self._loaded.prefill_tokens:
                break
            rows.append(self._waiting.popleft())
        for row in rows:
            row.status = SequenceStatus.PREFILL
        with self._output.together(rows):
            self._prefilling = self._batch(rows)

    def _advance_prefill(self) -> None:
        batch = self._prefilling
        if batch is None:
            return
        rows = list(batch.rows)
        with self._output.together(rows):
            if not self._score_prompt(rows) and not all(row.finished for row in rows):
                logits = batch.prefill(self._loaded.prefill_tokens)
                if logits is not None:
                    self._sample(batch, logits)
        if all(row.finished for row in rows):
            self._prefilling = None

    def _score_prompt(self, rows: list[Sequence]) -> bool:
        """Computes more of the first of the rows' prompts whose own logits are needed."""
        for row in rows:
            logprobs = row.prompt_logprobs
            if logprobs is None or row.finished:
                continue
            with self._output.alone(row):
                start, model = logprobs.position, self._loaded.model
                logprobs.add(start, prompt_logits(model, row.prompt, start, self._logits_rows))
                if logprobs.complete:
                    self._output.end_prompt(row)
            return True
        return False

    def _decode(self) -> None:
        rows = list(self._running.rows)
        arriving = None
        if self._prefilling and self._prefilling.prefilled:
            arriving, self._prefilling = self._prefilling, None
            rows += arriving.rows
            for row in arriving.rows:
                if row.status is SequenceStatus.PREFILL:  # it may have failed
                    row.status = SequenceStatus.RUNNING
        with self._output.together(rows):
            if arriving:
                self._running.adopt(arriving)
            self._running.remove_finished()
            if self._running.rows:
                self._sample(self._running, self._running.step())
        if rows and all(row.finished for row in rows):
            self._running = self._batch([])  # a failure may have left the cache half changed

    def _sample(self, batch: RowBatch, logits: torch.Tensor) -> None:
        """Samples every row's next token; rows that end with it leave."""
        for row in batch.rows:
            if row.slot is None and not row.finished:
                with self._output.alone(row):
                    self._assign(row)
        rows, slots, indices = [], [], []
        for index, row in enumerate(batch.rows):
            if not row.finished and row.slot is not None:
                rows.append(row)
                slots.append(row.slot)
                indices.append(index)
        if rows:
            if len(rows) < len(logits):
                logits = logits[indices]
            tokens = self._output.sample(self._sampler, logits, slots, rows)
            tokens.wait()
            for number, row in enumerate(rows):
                self._output.advance(row, tokens, number)
            guided = [row for row in rows if row.guide is not None and not row.finished]
            self._sampler.begin_masks([row.slot for row in guided if row.slot is not None])
        batch.remove_finished()

    def _assign(self, row: Sequence) -> None:
        row.slot = self._free_slot()
        self._sampler.assign(
            row.slot, row.sampling, row.prompt, row.answer, row.guide, row.end_rule
        )

    def _free_slot(self) -> int:
        taken = {row.slot for row in self._prefilling_rows() + self._running.rows}
        return min(set(range(self._slots)) - taken)

    def _prefilling_rows(self) -> list[Sequence]:
        if self._prefilling is None:
            return []
        return self._prefilling.rows
