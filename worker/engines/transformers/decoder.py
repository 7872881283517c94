"""The threads that compute: prepared sequences in, the scheduler step by step, its output out.

They never touch a socket or the event loop; `deliver` hands over all that a step made at once.
"""

import math
import os
import queue
import threading
import time
from collections.abc import Callable

import structlog
import torch

from broker.wire import Job
from worker.engines.base import Chunk, EngineError, EngineStopped, Markup
from worker.engines.transformers.cache.block_hashes import first_parent, hash_blocks
from worker.engines.transformers.errors import ThreadDied
from worker.engines.transformers.fallback.scheduler import FallbackScheduler
from worker.engines.transformers.guidance.answers import AnswerGrammars
from worker.engines.transformers.guidance.grammars import Grammars
from worker.engines.transformers.intake import Intake, drain
from worker.engines.transformers.model.cache_size import BLOCK_SIZE
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.row import length_group
from worker.engines.transformers.scheduler import SlotScheduler
from worker.engines.transformers.scheduler_protocol import Scheduler, StepOutput
from worker.engines.transformers.sequence import Sequence
from worker.engines.transformers.stopwatch import Stopwatch
from worker.engines.transformers.text.chat_format import ChatFormat
from worker.engines.transformers.text.chat_template import Prompts
from worker.engines.transformers.text.control_tokens import ControlTokens
from worker.engines.transformers.throttle import StreamThrottle

# Sequences taken in between two steps: each takes time of the host, and a GPU would wait for all.
_MAX_ADMITTED = 64

# The requests of a burst are gathered for so long in all, and so long after the latest one.
_GATHER_SECONDS = 0.002  # a fifth of a decoding step with 256 sequences on a large GPU
_GAP_SECONDS = 0.0005

# A GPU reads the prompts of a burst faster than one thread tokenizes them.
_MAX_INTAKE_THREADS = 4
_CORES_PER_INTAKE = 4

log = structlog.get_logger(__name__)


class Decoder:
    """Owns the model, and every sequence from `submit` until it has finished.

    The intake's threads tokenize prompts, the decoding thread computes. All call `deliver`.
    """

    def __init__(
        self, loaded: LoadedModel, slots: int, deliver: Callable[[StepOutput], None]
    ) -> None:
        self._loaded = loaded
        self._deliver = deliver
        self._throttle = StreamThrottle(deliver, time.monotonic)
        self._scheduler = _make_scheduler(loaded, slots)
        self._format = ChatFormat(loaded.tokenizer)
        grammars = Grammars(loaded.tokenizer, loaded.vocabulary, loaded.eos_token_ids)
        self._grammars = AnswerGrammars(grammars, self._format)
        self._of_thread = threading.local()  # `prompts`: those of an intake thread
        self._intake = Intake(
            self._prepare,
            self._ready,
            self._refused,
            self._intake_died,
            _intake_threads(loaded),
        )
        # bounded by the engine's open runs; None: stop
        self._prepared: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._stopwatch = Stopwatch()
        self._undelivered: StepOutput = []  # of the present step
        self.warm = False  # a step has ended
        self._closed: EngineError | None = None  # why submitted sequences are no longer computed
        self._stopping = False
        self._dead = False  # the decoding thread has ended by an error
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def start(self) -> None:
        """Begins to compute."""
        self._thread.start()
        self._intake.start()

    def markup(self, job: Job) -> Markup:
        """How an answer to `job` marks its parts; from any thread."""
        return self._format.markup(job)

    @property
    def reuse(self) -> tuple[int, int]:
        """See `Scheduler.reuse`; from any thread."""
        return self._scheduler.reuse

    @property
    def usable_slots(self) -> int:
        """See `Scheduler.usable_slots`; from any thread."""
        return self._scheduler.usable_slots

    @property
    def warning(self) -> str:
        """For the operator; empty if there is nothing to say. From any thread."""
        count = self._scheduler.not_finite
        if not count:
            return ""
        answers = f"{count} answers"
        if count == 1:
            answers = "an answer"
        return (
            f"{answers} ended because the model computed NaN or infinite logits: check its weights"
        )

    def submit(self, sequence: Sequence) -> None:
        """Takes a job in; from any thread. Raises EngineStopped if a thread has ended."""
        self._intake.submit(sequence)
        if self._closed is not None:
            # Read after the put, and set before the queue is drained: no job is forgotten.
            raise EngineStopped(f"the engine is not running: {self._closed}")

    def stop(self, seconds: float) -> bool:
        """Ends every run. False if a step, which cannot be interrupted, takes longer."""
        deadline = time.monotonic() + seconds
        self._stopping = True
        self._prepared.put(None)
        self._intake.stop()
        self._thread.join(seconds)
        intake_ended = self._intake.join(max(0.0, deadline - time.monotonic()))
        return intake_ended and not self._thread.is_alive()

    def stalled(self) -> float:
        """Seconds since the step in progress began, 0.0 between steps, infinite once a thread has
        died. From any thread.
        """
        if self._dead:
            return math.inf
        return max(self._stopwatch.seconds(), self._intake.stalled())

    # ---- in an intake thread

    def _prepare(self, sequence: Sequence) -> list[Chunk]:
        prompts: Prompts | None = getattr(self._of_thread, "prompts", None)
        if prompts is None:  # made here, as a large vocabulary takes a moment
            prompts = Prompts(self._loaded.tokenizer, self._loaded.context, self._format)
            self._of_thread.prompts = prompts
        sequence.guide = self._grammars.start(sequence.job)
        chunks = sequence.prepare(self._loaded, prompts)
        runner = self._loaded.runner
        if runner is not None and runner.blocks:  # here, as the decoding thread has no time for it
            parent = first_parent(length_group(runner.rope_limit, len(sequence.ids)))
            sequence.block_hashes = hash_blocks(sequence.ids, BLOCK_SIZE, parent)
        return chunks

    def _ready(self, sequence: Sequence, chunks: list[Chunk]) -> None:
        self._deliver([(sequence.mailbox, chunk) for chunk in chunks])
        if not sequence.finished:
            self._prepared.put(sequence)
        if self._closed is not None:
            self._fail(drain(self._prepared), self._closed)
            if self._stopping:
                self._prepared.put(None)  # it may have been among them

    def _refused(self, sequence: Sequence, error: EngineError) -> None:
        self._fail([sequence], error)

    def _intake_died(self, error: BaseException, left: list[Sequence]) -> None:
        """Running sequences go on until the engine is restarted."""
        self._closed = ThreadDied("intake", error)
        self._fail(left + self._intake.close(), self._closed)

    # ---- in the decoding thread

    def _run(self) -> None:
        cause: EngineError = EngineStopped()
        try:
            if torch.device(self._loaded.model.device).type == "cuda":
                torch.cuda.set_device(self._loaded.model.device)  # per thread
            with torch.inference_mode():
                while self._receive():
                    self._step()
        except BaseException as error:
            # nothing raises here by intent; the engine is restarted, with this reason
            log.exception("the decoding thread died")
            self._dead = True
            cause = ThreadDied("decoding", error)
        finally:
            self._close(cause)

    def _close(self, cause: EngineError) -> None:
        """Leaves no reader waiting, whatever ended the loop."""
        self._closed = cause
        waiting = drain(self._prepared) + self._intake.close()
        self._fail(self._scheduler.unfinished() + waiting, cause)
        # The present step may hold chunks, and ends of answers, that no reader has got.
        undelivered = self._undelivered + self._scheduler.take_output()
        if undelivered:
            self._deliver([(mailbox, cause) for mailbox, _ in undelivered])

    def _step(self) -> None:
        with self._stopwatch.running():
            self._undelivered = self._scheduler.step()
        self.warm = True
        self._throttle.push(self._undelivered, self._scheduler.delay)
        self._undelivered = []
        self._throttle.retain([sequence.mailbox for sequence in self._scheduler.unfinished()])

    def _receive(self) -> bool:
        """Takes prepared sequences in, blocking while there is nothing else to do. False: stop.

        The requests of a burst leave the intake one after the other. Once the first is here, the
        others are waited for a moment: one step then computes all their prompts.
        """
        deadline = 0.0
        for number in range(_MAX_ADMITTED):
            try:
                sequence = self._next_prepared(deadline)
            except queue.Empty:
                break
            if sequence is None:
                return False
            self._scheduler.add(sequence)
            if number == 0:
                deadline = time.monotonic() + _GATHER_SECONDS
        return True

    def _next_prepared(self, deadline: float) -> Sequence | None:
        """Raises queue.Empty if there is none, or none before `deadline` while a burst arrives."""
        if not self._scheduler.has_work:
            return self._prepared.get()
        timeout = max(0.0, deadline - time.monotonic())
        if not self._intake.busy:
            timeout = min(timeout, _GAP_SECONDS)
        return self._prepared.get(timeout=timeout)

    def _fail(self, sequences: list[Sequence], error: EngineError) -> None:
        """Ends those that have not finished."""
        output: StepOutput = []
        for sequence in sequences:
            if not sequence.finished:
                sequence.fail()
                output.append((sequence.mailbox, error))
        if output:
            self._deliver(output)


def _intake_threads(loaded: LoadedModel) -> int:
    """On a CPU the model needs the cores. Some tokenizers are changed while they are used."""
    on_cpu = torch.device(loaded.model.device).type == "cpu"
    if on_cpu or not ControlTokens(loaded.tokenizer).shareable:
        return 1
    return max(1, min(_MAX_INTAKE_THREADS, (os.cpu_count() or 1) // _CORES_PER_INTAKE))


def _make_scheduler(loaded: LoadedModel, slots: int) -> Scheduler:
    if loaded.runner is not None:
        return SlotScheduler(loaded, loaded.runner)
    return FallbackScheduler(loaded, slots)
