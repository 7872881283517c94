"""What the decoding thread asks of a scheduler, which decides what each step computes.

`SlotScheduler` (scheduler.py) uses the model runner, `FallbackScheduler` (fallback/) the
library's own attention and cache.
"""

from typing import Protocol

from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.sequence import Sequence

StepOutput = list[tuple[Mailbox, Chunk | EngineError]]  # what a step made, and for whom


class Scheduler(Protocol):
    """Owns sequences from `add` until they have finished. Used by one thread."""

    @property
    def has_work(self) -> bool:
        """Whether the next `step` has something to do."""

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since the start, and how many of them came from the prefix cache."""

    @property
    def usable_slots(self) -> int:
        """How many sequences it could compute at once now, those that it has included."""

    @property
    def not_finite(self) -> int:
        """Answers that ended because of NaN or infinite logits."""

    @property
    def delay(self) -> float:
        """Seconds by which prompts lengthen the step that is computed now, as far as is known."""

    def add(self, sequence: Sequence) -> None:
        """Takes a prepared sequence in. Cancelling it takes effect at the next step."""

    def unfinished(self) -> list[Sequence]:
        """Every sequence that still waits or runs."""

    def step(self) -> StepOutput:
        """Does a bounded amount of work. Does not raise: a failure ends the sequences concerned."""

    def take_output(self) -> StepOutput:
        """What a step made before an error broke it off all the same."""
