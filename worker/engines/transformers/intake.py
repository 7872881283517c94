"""The thread that tokenizes prompts, so that a long one costs its own time and no stream's.

One thread: jobs begin in the order in which they arrive. Rendering a template holds the
interpreter's lock, tokenizing does not; the context bounds both, see `text.chat_template`.
"""

import math
import queue
import threading
from collections.abc import Callable

import structlog

from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.errors import prompt_error
from worker.engines.transformers.sequence import Sequence
from worker.engines.transformers.stopwatch import Stopwatch

log = structlog.get_logger(__name__)


class Intake:
    """Owns a sequence from `submit` until `ready` or `refused`, which it calls in its thread."""

    def __init__(
        self,
        prepare: Callable[[Sequence], list[Chunk]],
        ready: Callable[[Sequence, list[Chunk]], None],
        refused: Callable[[Sequence, EngineError], None],
        died: Callable[[BaseException, list[Sequence]], None],
    ) -> None:
        """`died`: with what ended the thread, and the sequences it leaves."""
        self._prepare = prepare
        self._ready = ready
        self._refused = refused
        self._died = died
        # bounded by the engine's open runs; None: stop
        self._queue: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._stopwatch = Stopwatch()
        self._dead = False
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """From any thread."""
        self._queue.put(sequence)

    def stop(self) -> None:
        """Ends the thread once the sequences before this call are prepared."""
        self._queue.put(None)

    def join(self, seconds: float) -> bool:
        """Whether the thread has ended within that time."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether a sequence is being prepared or waits for that; from any thread."""
        return self._stopwatch.seconds() > 0 or not self._queue.empty()

    def stalled(self) -> float:
        """Seconds since it began the present prompt; infinite if the thread has died."""
        return math.inf if self._dead else self._stopwatch.seconds()

    def close(self) -> list[Sequence]:
        """Ends the thread; returns the sequences that it has not begun. From any thread."""
        waiting = drain(self._queue)
        self.stop()  # again: an earlier stop may have been drained, too
        return waiting

    def _run(self) -> None:
        sequence = None
        try:
            while (sequence := self._queue.get()) is not None:
                if not sequence.finished:  # cancelled before its turn: nothing is spent on it
                    self._admit(sequence)
        except BaseException as error:
            # nothing raises here by intent; the engine is restarted, with this reason
            log.exception("the intake thread died")
            self._dead = True
            left = [sequence] if sequence is not None else []
            self._died(error, left + self.close())
        finally:  # no cycle of references keeps the model in memory
            del self._prepare, self._ready, self._refused, self._died

    def _admit(self, sequence: Sequence) -> None:
        try:
            with self._stopwatch.running():
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
