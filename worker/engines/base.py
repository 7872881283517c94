"""The protocol every engine keeps."""

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from broker.wire import FailureCode, FinishReason, Job


class EngineError(Exception):
    """A job that cannot be run. `retryable`: another node, or a later try, may succeed."""

    def __init__(self, code: FailureCode, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class EngineUnavailable(Exception):
    """The engine cannot start (no such model folder, no such device); the text says what to do."""


class Chunk(msgspec.Struct, frozen=True):
    """What one decoding step made for one job.

    The first chunk of a run carries `prompt_tokens` (text may be empty); the last one carries `finish`.
    `text` is always whole characters: bytes of an unfinished UTF-8 sequence are kept back.
    """

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    finish: FinishReason | None = None


class Engine(Protocol):
    """Runs up to `slots` jobs at once. Called from the node's event loop, which it never blocks."""

    name: str
    model: str  # the public name of the model it serves
    device: str
    slots: int

    async def start(self) -> None:
        """Loads the model. Raises EngineUnavailable."""

    def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the answer. Raises EngineError.

        Closing the iterator or cancelling the task that reads it frees the slot within one decoding step.
        The caller never has more than `slots` runs open.
        """

    async def stop(self) -> None:
        """Ends every run and gives the memory back."""
