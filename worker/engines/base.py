"""The protocol that every engine keeps, and the errors that end a run."""

from collections.abc import AsyncIterator
from typing import ClassVar, NamedTuple, Protocol

import msgspec

from broker.wire import FailureCode, FinishReason, Job, Task, TokenLogprob
from worker.errors import WorkerError

DEFAULT_SLOTS = 8  # where neither the operator nor a GPU's memory says how many


class EngineError(Exception):
    """Why a run ended without an answer. The subclass decides what becomes of the job.

    `code` and the message go to the user. `retryable`: the job runs again, here or on another node.
    `suspect`: the job may be the cause, so this run counts towards its attempts. `isolated`: the
    engine works on; otherwise it is restarted, and its other runs end, too.
    """

    code: ClassVar[FailureCode] = "engine"
    retryable: ClassVar[bool] = False
    suspect: ClassVar[bool] = True

    def __init__(self, message: str, *, isolated: bool = False) -> None:
        super().__init__(message)
        self.isolated = isolated


class InvalidRequest(EngineError):
    """Permanent, the request's fault: no node can answer it."""

    code: ClassVar[FailureCode] = "invalid"

    def __init__(self, message: str) -> None:
        super().__init__(message, isolated=True)


class PromptTooLong(InvalidRequest):
    """Permanent, the request's fault: prompt and answer do not fit the context."""

    code: ClassVar[FailureCode] = "too_long"


class AnswerFailed(EngineError):
    """Permanent, our fault: the work for this one job raised, and would on every node."""

    code: ClassVar[FailureCode] = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message, isolated=True)


class EngineFailed(EngineError):
    """Retryable, the engine's fault or the job's: something raised while the job ran."""

    retryable = True


class EngineStopped(EngineError):
    """Retryable, nobody's fault: the engine is stopping, or is not running."""

    retryable = True
    suspect = False

    def __init__(self, message: str = "the engine is stopping") -> None:
        super().__init__(message)


class NoFreeSlot(EngineError):
    """Retryable, nobody's fault: every slot has a run, as after a restart with fewer slots."""

    retryable = True
    suspect = False

    def __init__(self, slots: int) -> None:
        super().__init__(f"all {slots} slots are taken", isolated=True)


def check_task(job: Job, *done: Task) -> None:
    """Raises InvalidRequest for a job that wants something else than the engine has `done`."""
    if job.task not in done:
        raise InvalidRequest(f"{job.model} does not {job.task}: ask a model that does")


class EngineUnavailable(WorkerError):
    """The engine cannot start (no model folder, no such device). Tells the operator what to do."""


class Chunk(msgspec.Struct, frozen=True):
    """What one decoding step made for one job.

    The first chunk of a run has no text: it carries `prompt_tokens`, and in `tokens` the count of
    what the reader of a continued job has already. The last one carries `finish`, perhaps alone. So
    the sum of `tokens` counts the whole answer, whatever was delivered before. An engine that
    learns the true counts only at the end sends estimates first, and corrects them in its last
    chunk: `prompt_tokens`, and `tokens`, which may then be negative.
    """

    text: str = ""  # whole characters: an incomplete UTF-8 sequence waits for its rest
    tokens: int = 0
    prompt_tokens: int = 0
    finish: FinishReason | None = None
    cached_tokens: int = 0  # last chunk only: of the prompt, found in the prefix cache
    omitted_messages: int = 0  # first chunk only: turns left out of the prompt; see Job.truncate
    # Of this chunk's tokens, if the engine can continue from ids; not of what was delivered before.
    # The prompt's where the job is to tokenize it.
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # of this chunk's tokens, if requested and available
    # Of all the prompt's tokens, the first with 0, as nothing comes before it. In one chunk, and
    # not again in a continued job that has some text or tokens already.
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    # The next results of a `pooling` job, in the order of its inputs; see broker.wire.Vectors.
    rows: tuple[bytes, ...] = ()


class Markup(NamedTuple):
    """How an answer's text marks its parts; see api/requests/parts. Empty: it has no such parts."""

    tool_format: str = ""
    reasoning_format: str = ""


class Footprint(NamedTuple):
    """What a model takes in the memory of its process, in bytes; 0: unknown, or it varies.

    `precision`: the number format of the weights; empty: unknown. `cache`: keys and values.
    """

    precision: str = ""
    weights: int = 0
    cache: int = 0


class Engine(Protocol):
    """Runs up to `slots` jobs at once. Called from the node's event loop, which it never blocks.

    `slots` and `context_length` are final once `start` has returned, until it is called again: an
    engine may choose them by the memory it finds. Before that `slots` is a guess, at least 1.
    """

    name: str
    model: str  # the public name of the model it serves
    device: str
    slots: int
    context_length: int  # tokens of prompt and answer together; 0: unknown
    # What it does; it refuses other jobs by `check_task`. Final once `start` has returned.
    tasks: tuple[Task, ...]

    @property
    def warning(self) -> str:
        """What an operator should look at although the engine serves; empty: nothing."""

    @property
    def warm(self) -> bool:
        """Whether a step has ended since `start`: only the first may take minutes to compile."""

    @property
    def stuck(self) -> bool:
        """`stop` could not end the computation: only a new process can serve again."""

    @property
    def footprint(self) -> Footprint:
        """Of the model, once `start` has returned."""

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since `start`, and how many the prefix cache had. (0, 0): unknown."""

    @property
    def usable_slots(self) -> int:
        """How many jobs it can run at once now: fewer than `slots` where they take more memory."""

    async def start(self) -> None:
        """Loads the model, also again after `stop`. Raises EngineUnavailable."""

    def markup(self, job: Job) -> Markup:
        """How an answer to `job` will mark calls of tools and reasoning. Returns at once."""

    def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the answer, from where `job.delivered` ends. Raises EngineError.

        Closing the iterator or cancelling the task that reads it frees the slot within one
        decoding step. The caller never has more than `slots` runs open.
        """

    def stalled(self) -> float:
        """Seconds since the step in progress began, 0.0 between steps, infinite after a crash."""

    async def stop(self) -> None:
        """Ends every run (EngineStopped) and frees the memory. Returns within about 5 s."""
