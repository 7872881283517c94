"""What the computing thread asks of whoever decides what a step computes."""

from typing import Protocol

from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.sequence import Sequence

News = list[tuple[Mailbox, Chunk | EngineError]]


class Scheduler(Protocol):
    """Sequences that are waiting, whose prompts are read, or that run. Used by one thread."""

    @property
    def busy(self) -> bool:
        """There is something to compute."""

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since the start, and how many of them were not read again."""

    @property
    def not_finite(self) -> int:
        """Answers that ended because the model's logits were not numbers."""

    def add(self, sequence: Sequence) -> None:
        """Takes a prepared sequence in. Setting its `finished` withdraws it at the next step."""

    def everyone(self) -> list[Sequence]:
        """All that have not ended."""

    def step(self) -> News:
        """A bounded amount of work; what came of it. Does not raise: a failure ends the sequences concerned."""

    def unsaid(self) -> News:
        """What came of a step that was broken off all the same."""
