"""The thread that computes: takes jobs in, moves every running one by a token a step, tells what came of it.

It never touches a socket or the event loop; `tell` hands over everything a step made at once.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import torch

from worker.engines.base import Chunk, EngineError, EngineStopped
from worker.engines.batch import Batch, Prefill
from worker.engines.failure import model_failed, unreadable
from worker.engines.loaded import Loaded
from worker.engines.mailbox import Mailbox
from worker.engines.sampling import Sampler
from worker.engines.sequence import Sequence

log = structlog.get_logger(__name__)

News = list[tuple[Mailbox, Chunk | EngineError]]


class Decoder:
    """Owns the model and every sequence from `submit` until it has ended."""

    def __init__(self, loaded: Loaded, slots: int, tell: Callable[[News], None]) -> None:
        self._loaded = loaded
        self._slots = slots
        self._tell = tell
        self._orders: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()  # bounded by the engine's open runs
        self._waiting: deque[Sequence] = deque()
        self._prefill: Prefill | None = None
        self._running = Batch(loaded.model)
        self._sampler = Sampler(slots, loaded.vocabulary, torch.device(loaded.model.device))
        self._news: News = []
        self._since: float | None = None  # when the step in progress began (monotonic); read from other threads
        self.warm = False  # a step has ended
        self._closed = False  # nobody looks at the orders any more
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def start(self) -> None:
        """Begins to compute."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Takes a job in; from any thread. Setting `sequence.finished` withdraws it at the next step.

        Raises EngineError if the thread has ended.
        """
        self._orders.put(sequence)
        if self._closed:  # looked at after the put, and set before the last look at the orders: no job is forgotten
            raise EngineStopped("the engine is not running")

    def stop(self, seconds: float) -> bool:
        """Ends every run; True if the thread ended within `seconds` (a step cannot be interrupted)."""
        self._orders.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stalled(self) -> float:
        """Seconds since the step in progress began, 0.0 between steps; from any thread."""
        since = self._since  # read once: the other thread may end the step meanwhile
        return 0.0 if since is None else time.monotonic() - since

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """What may hang, for `stalled`."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._receive():
                    self._step()
        finally:  # nobody is left waiting, whatever ended the loop
            self._closed = True
            everyone = [*self._waiting, *self._rows_reading(), *self._running.rows, *self._unread()]
            self._fail(everyone, EngineStopped())
            self._flush()

    def _receive(self) -> bool:
        """Takes in what was submitted, waiting for it when there is nothing else to do. False: stop."""
        idle = not (self._waiting or self._prefill or self._running.rows)
        while idle or not self._orders.empty():
            sequence = self._orders.get()
            if sequence is None:
                return False
            self._admit(sequence)
            idle = False
        return True

    def _step(self) -> None:
        """A bounded piece of a newcomer's prompt, then a token for everyone who runs."""
        with self._timed():
            self._start_prefill()
            if self._prefill:
                self._attempt(self._advance_prefill, self._prefill.batch)
            self._attempt(self._decode, self._running)
        self.warm = True
        self._flush()

    def _admit(self, sequence: Sequence) -> None:
        """Turns the job into tokens; what cannot be read ends here."""
        try:
            with self._timed():
                chunks = sequence.prepare(self._loaded)
        except Exception as error:  # whatever a tokenizer or a template raises; it ends this job alone
            self._fail([sequence], unreadable(error))
        else:
            self._news += [(sequence.mailbox, chunk) for chunk in chunks]
            self._waiting.append(sequence)
        self._flush()

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

    def _unread(self) -> list[Sequence]:
        orders = [self._orders.get() for _ in range(self._orders.qsize())]
        return [sequence for sequence in orders if sequence is not None]

    def _flush(self) -> None:
        if self._news:
            self._tell(self._news)
            self._news = []
