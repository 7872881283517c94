"""The transformers engine: a real model, its tokens streamed as they are made.

    event loop                          threads of the Decoder
    run(job) --- Sequence ------------> Intake: the prompt's tokens
                                        decoding: scheduler, model, sampler, text
    Mailbox <--- call_soon_threadsafe - after each step, with all that it made

The threads own the model, the tokenizer and every sequence; the event loop owns the mailboxes, and
may cancel a sequence.
"""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import structlog
import torch

from broker.wire import Job, Task
from worker.engines.base import (
    Chunk,
    EngineStopped,
    EngineUnavailable,
    Footprint,
    InvalidRequest,
    Markup,
    NoFreeSlot,
    check_task,
)
from worker.engines.transformers import pooling
from worker.engines.transformers.compute_thread import run_in_thread_async
from worker.engines.transformers.decoder import Decoder
from worker.engines.transformers.errors import sequence_error
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.model.loader import load
from worker.engines.transformers.model.memory import footprint
from worker.engines.transformers.model.placement import find_devices
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence
from worker.models import installed

log = structlog.get_logger(__name__)

_TASKS: tuple[Task, ...] = ("generate", "tokenize", "detokenize")
_STOP_SECONDS = 5.0
# With several processes, and as long again once a step no longer waits for the others.
_STOP_RANKS_SECONDS = 2.5


class TransformersEngine:
    """Keeps the `Engine` protocol."""

    name = "transformers"

    def __init__(
        self,
        *,
        model: str,
        model_path: str | None,
        device: str,
        slots: int,
        choose_slots: bool = False,
        ranks: int = 1,
        loader: Callable[[str, int], LoadedModel] | None = None,
    ) -> None:
        """`choose_slots`: each start chooses how many there is memory for. `ranks`: processes that
        compute the model together. `loader`: makes the model for a device and a number of slots,
        instead of reading `model_path`.
        """
        self.model = model
        self.device = device
        self.slots = slots
        self.context_length = 0
        self._folder: Path | None = None
        if model_path:
            self._folder = Path(model_path)
        self._choose_slots = choose_slots
        self._ranks = ranks
        self._load = loader or self._from_folder
        self._decoder: Decoder | None = None
        self._ending: Decoder | None = None
        self._close: Callable[[], bool] | None = None
        self._sequences: set[Sequence] = set()  # of open runs
        self.footprint = Footprint()
        self.stuck = False
        self.tasks: tuple[Task, ...] = _TASKS

    @property
    def warning(self) -> str:
        """See the protocol."""
        if self._decoder is None:
            return ""
        return self._decoder.warning

    @property
    def warm(self) -> bool:
        """See the protocol."""
        return self._decoder is not None and self._decoder.warm

    async def start(self) -> None:
        """Loads the model. Raises EngineUnavailable."""
        if self.stuck:
            raise EngineUnavailable(
                "the former model is still in this process's memory; start a new process"
            )
        loop = asyncio.get_running_loop()
        self.device = ",".join(map(str, await asyncio.to_thread(find_devices, self.device)))
        loaded = await run_in_thread_async(lambda: self._load(self.device, self.slots))

        def deliver(output: StepOutput) -> None:
            try:
                loop.call_soon_threadsafe(_put_all, output)
            except RuntimeError:  # the loop is closed: the process is ending and nobody reads
                log.debug("output without a reader", items=len(output))

        self._close = loaded.close
        self.slots, self.context_length = loaded.slots, loaded.context
        self.footprint = footprint(loaded)
        self.tasks = (*_TASKS, "embed") if _has_hidden_states(loaded) else _TASKS
        self._decoder = Decoder(loaded, loaded.slots, deliver)
        gc.collect()
        gc.freeze()  # scanning the libraries' 400,000 objects would stop every stream for 0.3 s
        self._decoder.start()

    def _from_folder(self, device: str, slots: int) -> LoadedModel:
        folder = self._folder or installed(self.model)
        requested: int | None = slots
        if self._choose_slots:
            requested = None
        if self._ranks > 1:
            if "," in device:
                raise EngineUnavailable(
                    "--tensor-parallel takes one --device: it counts on from there"
                )
            # here, as importing torch.distributed takes a second
            from worker.engines.transformers.tensor_parallel import leader

            return leader.load(folder, device, requested, self._ranks)
        return load(folder, device, requested)

    def markup(self, job: Job) -> Markup:
        """See the protocol."""
        if self._decoder is None:
            return Markup()
        return self._decoder.markup(job)

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the answer; see the protocol."""
        if self._decoder is None:
            raise EngineStopped("the engine is not running")
        check_task(job, *self.tasks)
        if len(self._sequences) >= self.slots:
            # Jobs that waited for their readers during a restart that left fewer slots.
            raise NoFreeSlot(self.slots)
        chunks = self._run_sequence(self._decoder, job)
        if job.task == "embed":
            chunks = self._run_inputs(self._decoder, job)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _run_inputs(self, decoder: Decoder, job: Job) -> AsyncGenerator[Chunk]:
        """A vector of each input, one after the other: a job takes one slot."""
        if job.pooling is None:
            raise InvalidRequest("a job without inputs")
        pooling.check(job.pooling)
        told = tokens = 0
        for index in range(job.delivered_inputs, len(job.pooling.inputs)):
            one = pooling.input_job(job, job.pooling, index)
            async with aclosing(self._run_sequence(decoder, one)) as chunks:
                async for chunk in chunks:
                    tokens += chunk.prompt_tokens
                    if not told:
                        told = tokens
                        yield chunk
                    elif chunk.rows:
                        yield Chunk(rows=chunk.rows)
        yield Chunk(prompt_tokens=tokens, finish="stop")

    async def _run_sequence(self, decoder: Decoder, job: Job) -> AsyncGenerator[Chunk]:
        sequence = Sequence(job, Mailbox())
        self._sequences.add(sequence)
        try:
            decoder.submit(sequence)
            finish = None
            while finish is None:
                chunk = await sequence.mailbox.get()
                finish = chunk.finish
                yield chunk
        finally:
            sequence.cancel()  # if closed early, its slot is freed at the next step
            self._sequences.discard(sequence)

    @property
    def reuse(self) -> tuple[int, int]:
        """See the protocol."""
        if self._decoder is None:
            return 0, 0
        return self._decoder.reuse

    @property
    def usable_slots(self) -> int:
        """See the protocol."""
        if self._decoder is None:
            return self.slots
        return self._decoder.usable_slots

    def stalled(self) -> float:
        """See the protocol."""
        if self._decoder is None:
            return 0.0
        return self._decoder.stalled()

    async def stop(self) -> None:
        """Ends every run and frees the memory, which a thread that hangs in a step keeps."""
        if self._decoder is None:
            return
        self._ending, self._decoder = self._decoder, None
        for sequence in self._sequences:  # here, as the thread may never come to it
            sequence.cancel()
            sequence.mailbox.put(EngineStopped())
        if not await asyncio.to_thread(self._end):
            self.stuck = True
            log.error("a step does not end; only the process can end it", seconds=_STOP_SECONDS)
            return
        self.stuck = not await asyncio.to_thread(_free_memory)

    def _end(self) -> bool:
        """Ends the threads and the other ranks; False if a step or the GPU hangs.

        Takes the last reference to the model from `self`: as an argument it would live on in the
        thread pool for a while.
        """
        decoder, self._ending = self._ending, None
        if decoder is None:
            return True
        close, self._close = self._close, None
        if close is None:
            return decoder.stop(_STOP_SECONDS)
        ended = decoder.stop(_STOP_RANKS_SECONDS)
        closed = close()
        return (ended or decoder.stop(_STOP_RANKS_SECONDS)) and closed


def _has_hidden_states(loaded: LoadedModel) -> bool:
    """Whether they are at hand: by a runner, from what is below the output layer."""
    return loaded.runner is not None and loaded.model.base_model is not loaded.model


def _free_memory() -> bool:
    """Frees the memory for another model; False if the GPU is in an error that only the end of the
    process clears.
    """
    gc.unfreeze()
    gc.collect()  # exceptions and frames refer to each other, and to the model
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError as error:
        log.error("the GPU is in error", reason=str(error))
        return False
    return True


def _put_all(output: StepOutput) -> None:
    for mailbox, item in output:
        try:
            mailbox.put(item)
        except Exception as error:
            # the reader would miss a part of the answer, so the answer ends here
            log.exception("a chunk could not be delivered")
            mailbox.put(sequence_error(error))


def create(
    *,
    model: str,
    model_path: str | None,
    device: str,
    slots: int,
    token_delay: float,
    choose_slots: bool = False,
    tensor_parallel: int = 1,
) -> TransformersEngine:
    """For the table in `worker.engines`. `tensor_parallel`: processes that share the model."""
    return TransformersEngine(
        model=model,
        model_path=model_path,
        device=device,
        slots=slots,
        choose_slots=choose_slots,
        ranks=max(1, tensor_parallel),
    )
