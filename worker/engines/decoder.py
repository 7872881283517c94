"""The thread that computes: takes jobs in, lets the scheduler compute step by step, tells what came of it.

It never touches a socket or the event loop; `tell` hands over everything a step made at once.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from worker.engines.base import EngineError, EngineStopped
from worker.engines.failure import unreadable
from worker.engines.loaded import Loaded
from worker.engines.rowscheduler import RowScheduler
from worker.engines.scheduling import News, Scheduler
from worker.engines.sequence import Sequence
from worker.engines.slotscheduler import SlotScheduler
from worker.engines.telling import Telling

_ADMITTED = 16  # newcomers turned into tokens between two steps: those who run wait for them


class Decoder:
    """Owns the model and every sequence from `submit` until it has ended."""

    def __init__(self, loaded: Loaded, slots: int, tell: Callable[[News], None]) -> None:
        self._loaded = loaded
        self._tell = tell
        self._telling = Telling(tell, time.monotonic)
        self._scheduler: Scheduler = (
            SlotScheduler(loaded, loaded.over) if loaded.over is not None else RowScheduler(loaded, slots)
        )
        self._orders: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()  # bounded by the engine's open runs
        self._since: float | None = None  # when the step in progress began (monotonic); read from other threads
        self.warm = False  # a step has ended
        self.warning = ""  # for the operator
        self._closed = False  # nobody looks at the orders any more
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def start(self) -> None:
        """Begins to compute."""
        self._thread.start()

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since the start, and how many of them were not read again; from any thread."""
        return self._scheduler.reuse

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
            if torch.device(self._loaded.model.device).type == "cuda":
                torch.cuda.set_device(self._loaded.model.device)  # each thread has its own
            with torch.inference_mode():
                while self._receive():
                    with self._timed():
                        news = self._scheduler.step()
                    self.warm = True
                    self._telling.pass_on(news)
                    self._telling.retain([sequence.mailbox for sequence in self._scheduler.everyone()])
        finally:  # nobody is left waiting, whatever ended the loop
            self._closed = True
            self._end([*self._scheduler.everyone(), *self._unread()], EngineStopped())

    def _receive(self) -> bool:
        """Takes in what was submitted, waiting for it when there is nothing else to do. False: stop."""
        for _ in range(_ADMITTED):
            if self._scheduler.busy and self._orders.empty():
                break
            sequence = self._orders.get()
            if sequence is None:
                return False
            self._admit(sequence)
        return True

    def _admit(self, sequence: Sequence) -> None:
        """Turns the job into tokens; what cannot be read ends here."""
        try:
            with self._timed():
                chunks = sequence.prepare(self._loaded)
        except Exception as error:  # whatever a tokenizer or a template raises; it ends this job alone
            self._end([sequence], unreadable(error))
        else:
            self._told([(sequence.mailbox, chunk) for chunk in chunks])
            self._scheduler.add(sequence)

    def _end(self, sequences: list[Sequence], error: EngineError) -> None:
        running = [sequence for sequence in sequences if not sequence.finished]
        for sequence in running:
            sequence.finished = True
        self._told([(sequence.mailbox, error) for sequence in running])

    def _told(self, news: News) -> None:
        if news:
            self._tell(news)

    def _unread(self) -> list[Sequence]:
        orders = [self._orders.get() for _ in range(self._orders.qsize())]
        return [sequence for sequence in orders if sequence is not None]
