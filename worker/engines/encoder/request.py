"""One job's inputs on their way through the engine, and its results on their way back."""

import asyncio
from dataclasses import dataclass

from broker.wire import Job, JobClass, Pooling
from worker.engines.base import EngineError


class Results:
    """Rows in the order of the inputs, whatever the order in which they were computed.

    Both ends are used in the event loop's thread only.
    """

    def __init__(self, first: int, total: int) -> None:
        """`first`: the input of the next row; `total`: inputs in all."""
        self.prompt_tokens = 0
        self._next = first
        self._total = total
        self._rows: dict[int, bytes] = {}
        self._error: EngineError | None = None
        self._filled = asyncio.Event()

    def read(self, prompt_tokens: int) -> None:
        """The inputs were read, and have so many tokens."""
        self.prompt_tokens = prompt_tokens
        self._filled.set()

    def put(self, rows: dict[int, bytes]) -> None:
        """Takes rows by input."""
        self._rows.update(rows)
        self._filled.set()

    def fail(self, error: EngineError) -> None:
        """Ends the job; the first error stays."""
        self._error = self._error or error
        self._filled.set()

    @property
    def complete(self) -> bool:
        """Whether every row was taken."""
        return self._next >= self._total

    async def take(self) -> tuple[bytes, ...]:
        """Waits for something new; returns the rows that are next, perhaps none. Raises the error
        that ended the job.
        """
        await self._filled.wait()
        self._filled.clear()
        if self._error is not None:
            raise self._error
        rows: list[bytes] = []
        while self._next in self._rows:
            rows.append(self._rows.pop(self._next))
            self._next += 1
        return tuple(rows)


class Request:
    """A job of the engine. `cancelled` is set by the event loop and read by the threads."""

    def __init__(self, job: Job, pooling: Pooling) -> None:
        self.task = job.task
        self.pooling = pooling
        self.job_class: JobClass = job.job_class
        self.first = job.delivered_inputs  # those before it were computed by another node
        self.results = Results(self.first, len(pooling.inputs))
        self.cancelled = False


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One input as tokens. `prompt`: how many of them precede the text and are not pooled."""

    request: Request
    index: int
    ids: list[int]
    type_ids: list[int] | None = None
    prompt: int = 0

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids)
