"""The thread that turns jobs into tokens, so that a long prompt costs its own time and not that of
those who run.

One thread: jobs begin in the order in which they came. Rendering a template holds the interpreter's
lock, tokenising does not; both are bounded by the context, see `worker.engines.transformers.text.chat_template`.
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
    """Owns each sequence from `submit` until it is `ready` or has ended (`refused`). Both are
    called in its thread.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence], list[Chunk]],
        ready: Callable[[Sequence, list[Chunk]], None],
        refused: Callable[[Sequence, EngineError], None],
        died: Callable[[BaseException, list[Sequence]], None],
    ) -> None:
        """`died`: with what ended the thread, and whom it has left."""
        self._prepare = prepare
        self._ready = ready
        self._refused = refused
        self._died = died
        # bounded by the engine's open runs
        self._jobs: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._stopwatch = Stopwatch()
        self._dead = False
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """From any thread."""
        self._jobs.put(sequence)

    def stop(self) -> None:
        """No more jobs; those that are there are prepared first."""
        self._jobs.put(None)

    def join(self, seconds: float) -> bool:
        """True if the thread has ended within that time."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """A job is being prepared, or waits for that; from any thread."""
        return self._stopwatch.seconds() > 0 or not self._jobs.empty()

    def stalled(self) -> float:
        """Seconds since it began with the present job; infinite if the thread has died."""
        return math.inf if self._dead else self._stopwatch.seconds()

    def close(self) -> list[Sequence]:
        """Takes out those whose turn has not come, and lets the thread end. From any thread."""
        waiting = drained(self._jobs)
        self.stop()  # again: the first order to stop may have been among them
        return waiting

    def _run(self) -> None:
        sequence = None
        try:
            while (sequence := self._jobs.get()) is not None:
                if not sequence.finished:  # withdrawn before its turn: nothing is spent on it
                    self._admit(sequence)
        except BaseException as error:
            # nothing raises here by intent; the engine is started again, and says why
            log.exception("the intake thread died")
            self._dead = True
            left = [sequence] if sequence is not None else []
            self._died(error, [*left, *self.close()])
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


def drained(jobs: "queue.SimpleQueue[Sequence | None]") -> list[Sequence]:
    """What is in the queue; another thread may take from it at the same time."""
    found: list[Sequence] = []
    while True:
        try:
            sequence = jobs.get_nowait()
        except queue.Empty:
            return found
        if sequence is not None:
            found.append(sequence)
