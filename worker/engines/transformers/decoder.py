"""The thread that computes: takes prepared sequences in, lets the scheduler compute step by step,
tells what came of it.

It never touches a socket or the event loop; `tell` hands over everything a step made at once.
"""

import math
import queue
import threading
import time
from collections.abc import Callable

import structlog
import torch

from worker.engines.base import Chunk, EngineError, EngineStopped
from worker.engines.transformers.errors import ThreadDied
from worker.engines.transformers.fallback.scheduler import FallbackScheduler
from worker.engines.transformers.intake import Intake, drained
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.scheduler import SlotScheduler
from worker.engines.transformers.scheduler_protocol import Scheduler, StepOutput
from worker.engines.transformers.sequence import Sequence
from worker.engines.transformers.stopwatch import Stopwatch
from worker.engines.transformers.text.chat_template import Prompts
from worker.engines.transformers.throttle import StreamThrottle

# Newcomers taken in between two steps: giving one a slot takes about a millisecond of the host, and
# a GPU that has nothing to do meanwhile waits for them all.
_ADMITTED = 16

# Newcomers of one burst are gathered for so long in all, and so long after the last one.
_GATHERING_SECONDS = 0.002  # a fifth of a decoding step with 256 sequences on a large GPU
_GAP_SECONDS = 0.0005

log = structlog.get_logger(__name__)


class Decoder:
    """Owns the model and every sequence from `submit` until it has ended, in two threads: `intake`
    makes tokens of jobs, and the decoding thread computes. `tell` is called from both.
    """

    def __init__(self, loaded: LoadedModel, slots: int, tell: Callable[[StepOutput], None]) -> None:
        self._loaded = loaded
        self._tell = tell
        self._throttle = StreamThrottle(tell, time.monotonic)
        self._scheduler: Scheduler = (
            SlotScheduler(loaded, loaded.runner)
            if loaded.runner is not None
            else FallbackScheduler(loaded, slots)
        )
        self._prompts: Prompts | None = None
        self._intake = Intake(self._prepare, self._ready, self._refused, self._intake_died)
        # bounded by the engine's open runs
        self._prepared: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._stopwatch = Stopwatch()
        self._untold: StepOutput = []  # of the present step
        self.warm = False  # a step has ended
        # nobody looks at what is submitted any more, and why
        self._closed: EngineError | None = None
        self._dead = False  # the decoding thread has ended by an error
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def start(self) -> None:
        """Begins to compute."""
        self._thread.start()
        self._intake.start()

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since the start, and how many of them were not read again; from any thread."""
        return self._scheduler.reuse

    @property
    def warning(self) -> str:
        """For the operator; empty if there is nothing to say. From any thread."""
        count = self._scheduler.not_finite
        if not count:
            return ""
        answers = "an answer" if count == 1 else f"{count} answers"
        return (
            f"{answers} ended because the model computed NaN or infinite logits: check its weights"
        )

    def submit(self, sequence: Sequence) -> None:
        """Takes a job in; from any thread. Setting `sequence.finished` withdraws it at the next
        step.

        Raises EngineError if a thread has ended.
        """
        self._intake.submit(sequence)
        if self._closed is not None:
            # looked at after the put, and set before the last look: no job is forgotten
            raise EngineStopped(f"the engine is not running: {self._closed}")

    def stop(self, seconds: float) -> bool:
        """Ends every run; True if the threads ended within `seconds` (a step cannot be
        interrupted).
        """
        until = time.monotonic() + seconds
        self._prepared.put(None)
        self._intake.stop()
        self._thread.join(seconds)
        return self._intake.join(max(0.0, until - time.monotonic())) and not self._thread.is_alive()

    def stalled(self) -> float:
        """Seconds since the step in progress began, 0.0 between steps, infinite when a thread has
        died; from any thread.
        """
        return math.inf if self._dead else max(self._stopwatch.seconds(), self._intake.stalled())

    # ---- in the intake thread

    def _prepare(self, sequence: Sequence) -> list[Chunk]:
        if self._prompts is None:  # made here: of a large vocabulary it takes a moment
            self._prompts = Prompts(self._loaded.tokenizer, self._loaded.context)
        return sequence.prepare(self._loaded, self._prompts)

    def _ready(self, sequence: Sequence, chunks: list[Chunk]) -> None:
        self._told([(sequence.mailbox, chunk) for chunk in chunks])
        if not sequence.finished:
            self._prepared.put(sequence)
        if self._closed is not None:
            self._end(drained(self._prepared), self._closed)

    def _refused(self, sequence: Sequence, error: EngineError) -> None:
        self._end([sequence], error)

    def _intake_died(self, error: BaseException, left: list[Sequence]) -> None:
        """Those who run go on until the engine is started again."""
        self._closed = ThreadDied("intake", error)
        self._end([*left, *self._intake.close()], self._closed)

    # ---- in the decoding thread

    def _run(self) -> None:
        cause: EngineError = EngineStopped()
        try:
            if torch.device(self._loaded.model.device).type == "cuda":
                torch.cuda.set_device(self._loaded.model.device)  # each thread has its own
            with torch.inference_mode():
                while self._receive():
                    self._step()
        except BaseException as error:
            # nothing raises here by intent; the engine is started again, and says why
            log.exception("the decoding thread died")
            self._dead = True
            cause = ThreadDied("decoding", error)
        finally:  # nobody is left waiting, whatever ended the loop
            self._closed = cause
            self._end(
                [*self._scheduler.unfinished(), *drained(self._prepared), *self._intake.close()],
                cause,
            )
            # also an end that its reader has not heard of
            untold = [*self._untold, *self._scheduler.take_output()]
            self._told([(mailbox, cause) for mailbox, _ in untold])

    def _step(self) -> None:
        with self._stopwatch.running():
            self._untold = self._scheduler.step()
        self.warm = True
        self._throttle.push(self._untold)
        self._untold = []
        self._throttle.retain([sequence.mailbox for sequence in self._scheduler.unfinished()])

    def _receive(self) -> bool:
        """Takes in what is prepared, waiting for it when there is nothing else to do. False: stop.

        Requests that arrive together leave the intake one after the other. Once the first is here,
        the others are waited for a moment: their prompts are then read in one step, not in several.
        """
        deadline = 0.0
        for number in range(_ADMITTED):
            if not self._scheduler.has_work:
                sequence = self._prepared.get()
            else:
                try:
                    sequence = self._prepared.get(timeout=self._patience(deadline))
                except queue.Empty:
                    break
            if sequence is None:
                return False
            self._scheduler.add(sequence)
            if number == 0:
                deadline = time.monotonic() + _GATHERING_SECONDS
        return True

    def _patience(self, deadline: float) -> float:
        """Seconds to wait for the next newcomer, beside those who run."""
        left = max(0.0, deadline - time.monotonic())
        return left if self._intake.busy else min(left, _GAP_SECONDS)

    def _end(self, sequences: list[Sequence], error: EngineError) -> None:
        running = [sequence for sequence in sequences if not sequence.finished]
        for sequence in running:
            sequence.finished = True
        self._told([(sequence.mailbox, error) for sequence in running])

    def _told(self, news: StepOutput) -> None:
        if news:
            self._tell(news)
