"""The encoder engine: vectors and scores of texts by transformers, in batches of all jobs' inputs.

The event loop owns the runs; the threads of the `Encoder` own the model.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog
import torch

from broker.wire import Job, Task
from worker.engines import tasks
from worker.engines.base import (
    Chunk,
    EngineError,
    EngineStopped,
    EngineUnavailable,
    Footprint,
    InvalidRequest,
    Markup,
    NoFreeSlot,
    check_task,
)
from worker.engines.encoder.encoder import Encoder
from worker.engines.encoder.loader import load
from worker.engines.encoder.model import PoolingModel
from worker.engines.encoder.request import Request
from worker.engines.transformers.compute_thread import run_in_thread_async
from worker.engines.transformers.model.memory import weight_bytes
from worker.models import installed

log = structlog.get_logger(__name__)

SLOTS = 64  # jobs whose inputs share batches
# Tokens of a batch, with its padding. A batch is the time that a cancel and the next request wait.
CPU_TOKENS = 2_048
GPU_TOKENS = 65_536
_STOP_SECONDS = 5.0


class EncoderEngine:
    """Keeps the `Engine` protocol."""

    name = "encoder"
    warning = ""

    def __init__(
        self,
        *,
        model: str,
        folder: Path,
        device: str,
        slots: int,
        task: str = tasks.AUTO,
        loader: Callable[[Path, str, str], PoolingModel] = load,
    ) -> None:
        self.model = model
        self.device = device
        self.slots = slots
        self.context_length = 0
        self.footprint = Footprint()
        self.stuck = False
        self.tasks: tuple[Task, ...] = ("embed",)
        self._folder = folder
        self._task = task
        self._load = loader
        self._encoder: Encoder | None = None
        self._requests: set[Request] = set()  # of open runs

    @property
    def usable_slots(self) -> int:
        """All of them."""
        return self.slots

    @property
    def warm(self) -> bool:
        """See the protocol."""
        return self._encoder is not None and self._encoder.warm

    @property
    def reuse(self) -> tuple[int, int]:
        """Tokens that were computed; there is no prefix cache."""
        return (0 if self._encoder is None else self._encoder.tokens), 0

    async def start(self) -> None:
        """Loads the model. Raises EngineUnavailable."""
        if self.stuck:
            raise EngineUnavailable(
                "the former model is still in this process's memory; start a new process"
            )
        loop = asyncio.get_running_loop()
        loaded = await run_in_thread_async(
            lambda: self._load(self._folder, self.device, self._task)
        )
        device: torch.device = loaded.model.device
        self.device, self.tasks = str(device), (loaded.task,)
        self.context_length = loaded.reader.longest
        precision = str(loaded.model.dtype).removeprefix("torch.")
        self.footprint = Footprint(precision, weight_bytes(loaded.model))

        def deliver(request: Request, what: int | dict[int, bytes] | EngineError) -> None:
            try:
                loop.call_soon_threadsafe(_put, request, what)
            except RuntimeError:  # the loop is closed: the process is ending and nobody reads
                log.debug("results without a reader")

        budget = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
        self._encoder = Encoder(loaded, budget, deliver)
        self._encoder.start()

    def markup(self, job: Job) -> Markup:
        """See the protocol."""
        return Markup()

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the results; see the protocol."""
        if self._encoder is None:
            raise EngineStopped("the engine is not running")
        check_task(job, *self.tasks)
        if job.pooling is None:
            raise InvalidRequest("a job without inputs")
        if len(self._requests) >= self.slots:
            raise NoFreeSlot(self.slots)
        encoder, request = self._encoder, Request(job, job.pooling)
        self._requests.add(request)
        try:
            encoder.submit(request)
            async for chunk in _chunks(request):
                yield chunk
        finally:
            encoder.cancel(request)
            self._requests.discard(request)

    def stalled(self) -> float:
        """See the protocol."""
        return 0.0 if self._encoder is None else self._encoder.stalled()

    async def stop(self) -> None:
        """Ends every run and frees the memory, which a thread that hangs in a batch keeps."""
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        for request in self._requests:
            request.cancelled = True
            request.results.fail(EngineStopped())
        if not await asyncio.to_thread(encoder.stop, _STOP_SECONDS):
            self.stuck = True
            log.error("a batch does not end; only the process can end it", seconds=_STOP_SECONDS)
            return
        del encoder
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


async def _chunks(request: Request) -> AsyncIterator[Chunk]:
    results = request.results
    tokens = 0
    while True:
        rows = await results.take()
        if not tokens and results.prompt_tokens:
            tokens = results.prompt_tokens
            yield Chunk(prompt_tokens=tokens)
        if rows:
            yield Chunk(rows=rows)
        if tokens and results.complete:
            yield Chunk(finish="stop")
            return


def _put(request: Request, what: int | dict[int, bytes] | EngineError) -> None:
    if isinstance(what, EngineError):
        request.results.fail(what)
    elif isinstance(what, int):
        request.results.read(what)
    else:
        request.results.put(what)


def create(
    *,
    model: str,
    model_path: str | None,
    device: str,
    slots: int,
    token_delay: float,
    choose_slots: bool = False,
    task: str = tasks.AUTO,
) -> EncoderEngine:
    """For the table in `worker.engines`. `task`: embed or score; auto: as the files say."""
    return EncoderEngine(
        model=model,
        folder=Path(model_path) if model_path else installed(model),
        device=device,
        slots=SLOTS if choose_slots else slots,
        task=task,
    )
