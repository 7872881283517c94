"""The threads that tokenize prompts, so that a long one costs its own time and no stream's.

One thread where cores are few: jobs begin in the order in which they arrive. Rendering a template
holds the interpreter's lock, tokenizing does not; the context bounds both, see
`text.chat_template`.
"""

import math
import queue
import threading
import time
from collections.abc import Callable

import structlog

from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.errors import prompt_error
from worker.engines.transformers.sequence import Sequence
from worker.engines.transformers.stopwatch import Stopwatch

log = structlog.get_logger(__name__)


class Intake:
    """Owns a sequence from `submit` until `ready` or `refused`, which it calls in its threads."""

    def __init__(
        self,
        prepare: Callable[[Sequence], list[Chunk]],
        ready: Callable[[Sequence, list[Chunk]], None],
        refused: Callable[[Sequence, EngineError], None],
        died: Callable[[BaseException, list[Sequence]], None],
        threads: int = 1,
    ) -> None:
        """`died`: with what ended a thread, and the sequences it leaves; the others end, too."""
        self._prepare = prepare
        self._ready = ready
        self._refused = refused
        self._died = died
        # bounded by the engine's open runs; None: stop
        self._queue: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._dead = False
        self._stopwatches = [Stopwatch() for _ in range(threads)]
        self._threads: list[threading.Thread] = []
        for stopwatch in self._stopwatches:
            thread = threading.Thread(
                target=self._run, args=(stopwatch,), name="intake", daemon=True
            )
            self._threads.append(thread)
        self._unfinished = threads  # threads that may still call what was given
        self._lock = threading.Lock()  # for `_unfinished`

    def start(self) -> None:
        """Begins to work."""
        for thread in self._threads:
            thread.start()

    def submit(self, sequence: Sequence) -> None:
        """From any thread."""
        self._queue.put(sequence)

    def stop(self) -> None:
        """Ends the threads once the sequences before this call are prepared."""
        for _ in self._threads:
            self._queue.put(None)

    def join(self, seconds: float) -> bool:
        """Whether the threads have ended within that time."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def busy(self) -> bool:
        """Whether a sequence is being prepared or waits for that; from any thread."""
        return self._seconds() > 0 or not self._queue.empty()

    def stalled(self) -> float:
        """Seconds since it began the oldest present prompt; infinite if a thread has died."""
        if self._dead:
            return math.inf
        return self._seconds()

    def _seconds(self) -> float:
        return max(stopwatch.seconds() for stopwatch in self._stopwatches)

    def close(self) -> list[Sequence]:
        """Ends the threads; returns the sequences that it has not begun. From any thread."""
        waiting = drain(self._queue)
        self.stop()  # again: an earlier stop may have been drained, too
        return waiting

    def _run(self, stopwatch: Stopwatch) -> None:
        sequence: Sequence | None = None
        try:
            sequence = self._queue.get()
            while sequence is not None:
                if not sequence.finished:  # cancelled before its turn: nothing is spent on it
                    self._admit(sequence, stopwatch)
                sequence = self._queue.get()
        except BaseException as error:
            # nothing raises here by intent; the engine is restarted, with this reason
            log.exception("the intake thread died")
            self._dead = True
            left = self.close()
            if sequence is not None:
                left.insert(0, sequence)
            self._died(error, left)
        finally:
            self._forget()

    def _forget(self) -> None:
        """With the last thread: no cycle of references keeps the model in memory."""
        with self._lock:
            self._unfinished -= 1
            if not self._unfinished:
                del self._prepare, self._ready, self._refused, self._died

    def _admit(self, sequence: Sequence, stopwatch: Stopwatch) -> None:
        try:
            with stopwatch.running():
                chunks = self._prepare(sequence)
        except Exception as error:
            # whatever a tokenizer or a template raises; it ends this job alone
            self._refused(sequence, prompt_error(error))
        else:
            self._ready(sequence, chunks)


def drain(sequences: "queue.SimpleQueue[Sequence | None]") -> list[Sequence]:
    """Empties the queue; another thread may take from it at the same time."""
    drained: list[Sequence] = []
    while True:
        try:
            sequence = sequences.get_nowait()
        except queue.Empty:
            return drained
        if sequence is not None:
            drained.append(sequence)
