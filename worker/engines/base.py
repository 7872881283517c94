"""The protocol every engine keeps."""

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from broker.wire import FailureCode, FinishReason, Job, TokenLogprob

DEFAULT_SLOTS = 8  # where nobody says how many and no memory of a GPU tells


class EngineError(Exception):
    """A job that cannot be run. `retryable`: another node, or a later try, may succeed. `alone`: and no other run
    has to end for it, as the engine itself works on.
    """

    def __init__(
        self, code: FailureCode, message: str, *, retryable: bool = False, alone: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.alone = alone


class EngineStopped(EngineError):
    """The engine ended this run for no fault of the run's own."""

    def __init__(self, message: str = "the engine is stopping", *, alone: bool = False) -> None:
        super().__init__("engine", message, retryable=True, alone=alone)


class EngineUnavailable(Exception):
    """The engine cannot start (no such model folder, no such device); the text says what to do."""


class Chunk(msgspec.Struct, frozen=True):
    """What one decoding step made for one job.

    The first chunk of a run has no text: it carries `prompt_tokens`, and in `tokens` how many stand for what the reader
    of a continued job has already. The last one carries `finish`, perhaps alone. So the sum of `tokens` is the whole
    answer's count, whatever was delivered before. An engine that learns the true counts at the end only tells estimates
    first, and corrects them in its last chunk: `prompt_tokens`, and `tokens`, which may then be negative.
    `text` is always whole characters: bytes of an unfinished UTF-8 sequence are kept back.
    """

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    finish: FinishReason | None = None
    omitted_messages: int = 0  # in the first chunk: turns left out of the prompt; see Job.truncate
    ids: tuple[
        int, ...
    ] = ()  # the tokens told, if the engine can go on from them; never of what was delivered before
    logprobs: tuple[
        TokenLogprob, ...
    ] = ()  # of the tokens told, if they were asked for and the engine has them


class Engine(Protocol):
    """Runs up to `slots` jobs at once. Called from the node's event loop, which it never blocks.

    `slots` is final when `start` has returned, until it is called again: an engine may choose by the memory it finds.
    Before that it is a guess, from 1 up.
    """

    name: str
    model: str  # the public name of the model it serves
    device: str
    slots: int
    context_length: int  # tokens of prompt and answer together, final like `slots`; 0: not known

    @property
    def warning(self) -> str:
        """What an operator should look at while the engine serves all the same; empty: nothing."""

    @property
    def warm(self) -> bool:
        """A step has ended since `start`. The first one may compile for minutes; the later ones must not."""

    @property
    def stuck(self) -> bool:
        """`stop` could not end what computes: only a new process can serve again."""

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since `start`, and how many of them were held already and not read again. (0, 0): not known."""

    async def start(self) -> None:
        """Loads the model, also again after `stop`. Raises EngineUnavailable."""

    def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the answer, from where `job.delivered` ends. Raises EngineError.

        Closing the iterator or cancelling the task that reads it frees the slot within one decoding step.
        The caller never has more than `slots` runs open.
        """

    def stalled(self) -> float:
        """Seconds since the step in progress began; 0.0 when idle or between steps; infinite when what computes has
        died.
        """

    async def stop(self) -> None:
        """Ends every run (EngineStopped) and gives the memory back. Returns within about 5 s."""
