"""The threads of the engine: one reads the inputs of each job, one computes batches of them.

event loop                      threads
run(job) --- Request ---------> intake: tokens
                                encoder: batches of all requests' inputs
Results  <-- call_soon_threadsafe -- after each batch
"""

import math
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import structlog

from worker.engines.base import EngineError, EngineFailed, EngineStopped
from worker.engines.encoder.batching import WaitingItems
from worker.engines.encoder.model import PoolingModel
from worker.engines.encoder.request import Item, Request
from worker.engines.transformers.errors import (
    OutOfMemory,
    ThreadDied,
    prompt_error,
    sequence_error,
)
from worker.engines.transformers.stopwatch import Stopwatch

log = structlog.get_logger(__name__)

BATCH_ROWS = 512
LEAST_TOKENS = 256  # of a batch, however short memory is

Deliver = Callable[[Request, int | dict[int, bytes] | EngineError], None]


class Encoder:
    """Owns the model and every request from `submit` until its last row or its error.

    `deliver(request, what)` gets the number of its tokens, then rows by input, or the error that
    ends it; it is called in the threads.
    """

    def __init__(self, model: PoolingModel, batch_tokens: int, deliver: Deliver) -> None:
        self._model = model
        self._deliver = deliver
        self._waiting = WaitingItems(batch_tokens, BATCH_ROWS)
        # both bounded by the engine's open runs; None: stop
        self._unread: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._read: queue.SimpleQueue[tuple[Request, list[Item]] | None] = queue.SimpleQueue()
        self._stopwatches = (Stopwatch(), Stopwatch())
        self._stopping = False
        self._dead: EngineError | None = None
        self.warm = False  # a batch has ended
        self.tokens = 0  # computed
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
            for name, work in (("intake", self._read_inputs), ("encoder", self._compute_batches))
        ]

    def start(self) -> None:
        """Begins to compute."""
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request) -> None:
        """From any thread. Raises EngineStopped if a thread has died."""
        if self._dead is not None:
            raise EngineStopped(f"the engine is not running: {self._dead}")
        self._unread.put(request)

    def cancel(self, request: Request) -> None:
        """Its inputs are not computed any more, but for those of the present batch."""
        request.cancelled = True
        self._read.put((request, []))

    def stop(self, seconds: float) -> bool:
        """Ends the threads; false if a batch, which cannot be interrupted, takes longer."""
        deadline = time.monotonic() + seconds
        self._stopping = True
        self._unread.put(None)
        self._read.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def stalled(self) -> float:
        """Seconds since the present piece of work began; infinite if a thread has died."""
        if self._dead is not None:
            return math.inf
        return max(stopwatch.seconds() for stopwatch in self._stopwatches)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            # nothing raises here by intent; `stalled` has the engine restarted
            log.exception("a thread of the encoder died")
            self._dead = ThreadDied(threading.current_thread().name, error)

    # ---- the intake thread

    def _read_inputs(self) -> None:
        while (request := self._unread.get()) is not None:
            if not request.cancelled:
                self._read_input(request)

    def _read_input(self, request: Request) -> None:
        try:
            with self._stopwatches[0].running():
                self._model.check(request.pooling)
                items = self._model.reader.read(request)
        except Exception as error:
            # whatever a tokenizer raises; it ends this job alone
            self._deliver(request, prompt_error(error))
            return
        self._deliver(request, sum(item.length for item in items))
        self._read.put((request, items[request.first :]))

    # ---- the encoder thread

    def _compute_batches(self) -> None:
        while not self._stopping:
            self._take_in(wait=not len(self._waiting))
            batch = self._waiting.take()
            if batch and not self._stopping:
                with self._stopwatches[1].running():
                    self._compute(batch)
                self.warm = True

    def _take_in(self, *, wait: bool) -> None:
        """Takes all that has come; waits for the first if there is nothing else to do."""
        while True:
            try:
                entry = self._read.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if entry is None:
                return
            request, items = entry
            if request.cancelled:
                self._waiting.remove(request)
            else:
                self._waiting.add(items)

    def _compute(self, batch: Sequence[Item]) -> None:
        """In halves if it fails, so that an input that cannot be computed harms its job alone."""
        try:
            rows = self._model.compute(batch)
        except Exception as error:
            # its fate: see sequence_error
            failure = sequence_error(error)
            if not failure.isolated or len(batch) == 1:
                self._fail(batch, failure)
                return
            self._shrink(failure, batch)
            middle = len(batch) // 2
            self._compute(batch[:middle])
            self._compute(batch[middle:])
            return
        self.tokens += sum(item.length for item in batch)
        self._hand_out(batch, rows)

    def _shrink(self, failure: EngineError, batch: Sequence[Item]) -> None:
        """After running out of memory, later batches are smaller, too."""
        if isinstance(failure, OutOfMemory):
            taken = len(batch) * max(item.length for item in batch)
            self._waiting.tokens = max(LEAST_TOKENS, taken // 2)
            log.warning("batches are smaller from now on", tokens=self._waiting.tokens)

    def _hand_out(self, batch: Sequence[Item], rows: Sequence[bytes | EngineFailed]) -> None:
        by_request: defaultdict[Request, dict[int, bytes]] = defaultdict(dict)
        for item, row in zip(batch, rows, strict=True):
            if isinstance(row, EngineFailed):
                self._fail([item], row)
            else:
                by_request[item.request][item.index] = row
        for request, indexed in by_request.items():
            self._deliver(request, indexed)

    def _fail(self, items: Sequence[Item], error: EngineError) -> None:
        for request in {item.request for item in items}:
            request.cancelled = True
            self._waiting.remove(request)
            self._deliver(request, error)
