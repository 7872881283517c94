"""What each step computes, for models that keep their own kind of cache: rows that grow together, see `batch`."""

from collections import deque
from collections.abc import Callable

import structlog
import torch

from worker.engines.base import EngineError
from worker.engines.batch import Batch, Prefill
from worker.engines.failure import model_failed
from worker.engines.loaded import Loaded
from worker.engines.sampling import Sampler
from worker.engines.scheduling import News
from worker.engines.sequence import Sequence

log = structlog.get_logger(__name__)


class RowScheduler:
    """Keeps the `Scheduler` protocol, over the library's own attention and cache."""

    def __init__(self, loaded: Loaded, slots: int) -> None:
        self._loaded = loaded
        self._slots = slots
        self._waiting: deque[Sequence] = deque()
        self._prefill: Prefill | None = None
        self._running = Batch(loaded.model)
        self._sampler = Sampler(slots, loaded.vocabulary, torch.device(loaded.model.device))
        self._news: News = []

    @property
    def busy(self) -> bool:
        """There is something to compute."""
        return bool(self._waiting or self._prefill or self._running.rows)

    @property
    def reuse(self) -> tuple[int, int]:
        """No prompt is kept beyond its answer."""
        return 0, 0

    def add(self, sequence: Sequence) -> None:
        """Takes a prepared sequence in."""
        self._waiting.append(sequence)

    def everyone(self) -> list[Sequence]:
        """All that have not ended."""
        return [*self._waiting, *self._rows_reading(), *self._running.rows]

    def step(self) -> News:
        """A bounded piece of a newcomer's prompt, then a token for everyone who runs."""
        self._start_prefill()
        if self._prefill:
            self._attempt(self._advance_prefill, self._prefill.batch)
        self._attempt(self._decode, self._running)
        news, self._news = self._news, []
        return news

    def _start_prefill(self) -> None:
        """Takes as many waiting jobs as have slots and fit into one forward pass; a long prompt goes alone."""
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.finished)
        room = self._slots - len(self._running.rows)
        if self._prefill or not self._waiting or room <= 0:
            return
        rows = [self._waiting.popleft()]
        longest = len(rows[0].ids)
        while self._waiting and len(rows) < room:
            longest = max(longest, len(self._waiting[0].ids))
            if longest * (len(rows) + 1) > self._loaded.prefill_tokens:
                break
            rows.append(self._waiting.popleft())
        self._prefill = Prefill(self._loaded.model, rows)

    def _advance_prefill(self) -> None:
        prefill = self._prefill
        if prefill is None or all(row.finished for row in prefill.batch.rows):
            self._prefill = None
            return
        logits = prefill.advance(self._loaded.prefill_tokens)
        if logits is not None:
            self._take(prefill.batch, logits)

    def _decode(self) -> None:
        if self._prefill and self._prefill.done:
            arrived, self._prefill = self._prefill.batch, None
            self._running.adopt(arrived)
        self._running.remove_finished()
        if self._running.rows:
            self._take(self._running, self._running.step([[row.last] for row in self._running.rows]))

    def _take(self, batch: Batch, logits: torch.Tensor) -> None:
        """Chooses every row's next token; rows that end with it leave."""
        for row in batch.rows:
            if row.slot is None:
                row.slot = self._free_slot()
                self._sampler.assign(row.slot, row.sampling, row.prompt, row.answer)
        picked = self._sampler.choose(logits, [row.slot for row in batch.rows if row.slot is not None]).read()
        for row, pick in zip(batch.rows, picked, strict=True):
            if not row.finished and (chunk := row.take(pick)):
                self._news.append((row.mailbox, chunk))
        batch.remove_finished()

    def _free_slot(self) -> int:
        taken = {row.slot for row in [*self._rows_reading(), *self._running.rows]}
        return next(slot for slot in range(self._slots) if slot not in taken)

    def _attempt(self, work: Callable[[], None], batch: Batch) -> None:
        """A failure ends the jobs of its batch and nothing else: the next batch begins with an empty cache."""
        try:
            work()
        except Exception as error:  # whatever a model raises; its jobs go on elsewhere
            log.exception("step failed", jobs=len(batch.rows))
            self._fail(batch.rows, model_failed(error))
            batch.clear()

    def _fail(self, sequences: list[Sequence], error: EngineError) -> None:
        for sequence in sequences:
            if not sequence.finished:
                sequence.finished = True
                self._news.append((sequence.mailbox, error))

    def _rows_reading(self) -> list[Sequence]:
        return self._prefill.batch.rows if self._prefill else []
