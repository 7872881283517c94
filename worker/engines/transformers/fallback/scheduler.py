"""What each step computes, for models that slots do not fit: rows that grow together, see `batch`, or one by one where
their caches do not allow that, see `alone`.
"""

from collections import deque
from typing import Any

import torch

from worker.engines.transformers.fallback.batch import Batch, Prefill
from worker.engines.transformers.fallback.one_by_one import AloneBatch, AlonePrefill
from worker.engines.transformers.model.loaded import Loaded
from worker.engines.transformers.output_processor import OutputProcessor
from worker.engines.transformers.sampling.sampler import Sampler
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence


class RowScheduler:
    """Keeps the `Scheduler` protocol, over the library's own attention and cache."""

    def __init__(self, loaded: Loaded, slots: int) -> None:
        self._loaded = loaded
        self._slots = slots
        self._waiting: deque[Sequence] = deque()
        self._prefill: Prefill | AlonePrefill | None = None
        self._running: Any = AloneBatch(loaded.model) if loaded.alone else Batch(loaded.model)
        self._sampler = Sampler(slots, loaded.vocabulary, torch.device(loaded.model.device))
        self._output = OutputProcessor()

    @property
    def has_work(self) -> bool:
        """There is something to compute."""
        return bool(self._waiting or self._prefill or self._running.rows)

    @property
    def reuse(self) -> tuple[int, int]:
        """No prompt is kept beyond its answer."""
        return 0, 0

    @property
    def not_finite(self) -> int:
        """Answers that ended because the model's logits were not numbers."""
        return self._output.not_finite

    def add(self, sequence: Sequence) -> None:
        """Takes a prepared sequence in."""
        self._waiting.append(sequence)

    def unfinished(self) -> list[Sequence]:
        """All that have not ended."""
        return [*self._waiting, *self._rows_reading(), *self._running.rows]

    def step(self) -> StepOutput:
        """A bounded piece of a newcomer's prompt, then a token for everyone who runs."""
        self._start_prefill()
        self._advance_prefill()
        self._decode()
        return self._output.take()

    def take_output(self) -> StepOutput:
        """What came of a step that was broken off."""
        return self._output.take()

    def _start_prefill(self) -> None:
        """Takes as many waiting jobs as have slots and fit into one forward pass; a long prompt goes alone."""
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.finished)
        room = self._slots - len(self._running.rows)
        if self._prefill or not self._waiting or room <= 0:
            return
        rows = [self._waiting.popleft()]
        longest = len(rows[0].ids)
        while self._waiting and len(rows) < room and not self._loaded.alone:
            longest = max(longest, len(self._waiting[0].ids))
            if longest * (len(rows) + 1) > self._loaded.prefill_tokens:
                break
            rows.append(self._waiting.popleft())
        with self._output.together(rows):
            reading = AlonePrefill if self._loaded.alone else Prefill
            self._prefill = reading(self._loaded.model, rows)

    def _advance_prefill(self) -> None:
        prefill = self._prefill
        if prefill is None:
            return
        rows = list(prefill.batch.rows)
        with self._output.together(rows):
            if not all(row.finished for row in rows):
                logits = prefill.advance(self._loaded.prefill_tokens)
                if logits is not None:
                    self._take(prefill.batch, logits)
        if all(row.finished for row in rows):
            self._prefill = None

    def _decode(self) -> None:
        arrived = None
        if self._prefill and self._prefill.done:
            arrived, self._prefill = self._prefill.batch, None
        rows = [*self._running.rows, *(arrived.rows if arrived else [])]
        with self._output.together(rows):
            if arrived:
                self._running.adopt(arrived)
            self._running.remove_finished()
            if self._running.rows:
                self._take(
                    self._running, self._running.step([[row.last] for row in self._running.rows])
                )
        if rows and all(row.finished for row in rows):
            self._running.clear()  # also of a cache that a failure may have left half changed

    def _take(self, batch: Batch | AloneBatch, logits: torch.Tensor) -> None:
        """Chooses every row's next token; rows that end with it leave."""
        for row in batch.rows:
            if row.slot is None and not row.finished:
                with self._output.alone(row):
                    self._assign(row)
        rows, slots, places = [], [], []
        for place, row in enumerate(batch.rows):
            if not row.finished and row.slot is not None:
                rows.append(row)
                slots.append(row.slot)
                places.append(place)
        if rows:
            wanted = logits if len(rows) == len(logits) else logits[places]
            choices = self._output.sample(self._sampler, wanted, slots, rows)
            choices.wait()
            for number, row in enumerate(rows):
                self._output.advance(row, choices, number)
        batch.remove_finished()

    def _assign(self, row: Sequence) -> None:
        row.slot = self._free_slot()
        self._sampler.assign(row.slot, row.sampling, row.prompt, row.answer)

    def _free_slot(self) -> int:
        taken = {row.slot for row in [*self._rows_reading(), *self._running.rows]}
        return next(slot for slot in range(self._slots) if slot not in taken)

    def _rows_reading(self) -> list[Sequence]:
        return self._prefill.batch.rows if self._prefill else []
