"""What a step made for whom, and whom a failure in it ends: its own sequence, or those of its
forward pass, and no other. Both schedulers compute every piece of work through one of these ways.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager

import structlog
import torch

from worker.engines.base import EngineError
from worker.engines.transformers.errors import model_failed, row_failed
from worker.engines.transformers.sampling.sampler import (
    NO_CHOICE,
    NOT_FINITE,
    Choices,
    Picked,
    Sampler,
)
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence

log = structlog.get_logger(__name__)


class OutputProcessor:
    """Chunks and errors since the last `take`. Used by one thread."""

    def __init__(self) -> None:
        self.not_finite = 0  # answers that ended because the model's logits were not numbers
        self._output: StepOutput = []

    def take(self) -> StepOutput:
        """Everything since the last call."""
        news, self._output = self._output, []
        return news

    def advance(self, sequence: Sequence, choices: Choices, row: int) -> int | None:
        """The sequence gets its token, row `row` of `choices`. None: it has ended meanwhile, or
        this ended it by an error.
        """
        if sequence.finished:
            return None
        try:  # not `alone`, which takes longer than all of this; each row of each step comes here
            picked = choices.picked(row)
            if (error := self._no_token(picked)) is not None:
                raise error
            if chunk := sequence.take(picked):
                self._output.append((sequence.mailbox, chunk))
            return picked.token
        except Exception as error:
            self._fail_alone(sequence, error)
            return None

    def fail(self, sequences: Iterable[Sequence], error: EngineError) -> None:
        """Ends those that have not ended yet."""
        for sequence in sequences:
            if not sequence.finished:
                sequence.failed = sequence.finished = True
                self._output.append((sequence.mailbox, error))

    @contextmanager
    def alone(self, sequence: Sequence) -> Iterator[None]:
        """Work for one sequence: whatever it raises ends that sequence."""
        try:
            yield
        except Exception as error:  # a fault in one sequence's work must not end the others
            self._fail_alone(sequence, error)

    @contextmanager
    def together(self, sequences: Many[Sequence]) -> Iterator[None]:
        """A forward pass: whatever it raises ends the sequences in it, which go on elsewhere."""
        try:
            yield
        except Exception as error:  # whatever a model or a device raises
            log.exception("a step failed", jobs=len(sequences))
            self.fail(sequences, model_failed(error))

    def choose(
        self, sampler: Sampler, logits: torch.Tensor, slots: list[int], sequences: Many[Sequence]
    ) -> Choices:
        """The next token of each row of `logits`. If choosing them at once fails, each is chosen by
        itself: a row does not depend on the others, so that only those fail that are the cause.
        """
        try:
            choices = sampler.propose(logits, slots)
        except Exception:  # found out one by one whose it is
            log.exception("choosing tokens failed, once more one by one", jobs=len(slots))
            choices = self._choose_apart(sampler, logits, slots, sequences)
        for slot, sequence in zip(slots, sequences, strict=True):
            try:  # as in `advance`
                sampler.accept(slot)
            except Exception as error:
                self._fail_alone(sequence, error)
        counted = [
            each for each, slot in zip(sequences, slots, strict=True) if sampler.adjusts(slot)
        ]
        with self.together(counted):  # should it fail, nobody knows what their histories have
            sampler.count(choices, slots)
        return choices

    def _fail_alone(self, sequence: Sequence, error: Exception) -> None:
        if isinstance(error, EngineError):  # foreseen, so its text says enough
            log.warning("a sequence failed", request_id=sequence.job.request_id, reason=str(error))
            self.fail([sequence], error)
        else:
            log.exception("a sequence failed", request_id=sequence.job.request_id)
            self.fail([sequence], row_failed(error))

    def _choose_apart(
        self, sampler: Sampler, logits: torch.Tensor, slots: list[int], sequences: Many[Sequence]
    ) -> Choices:
        parts: list[Choices] = []
        for row, (slot, sequence) in enumerate(zip(slots, sequences, strict=True)):
            part: Choices = Choices.none(logits.device)
            with self.alone(sequence):
                part = sampler.propose(logits[row : row + 1], [slot])
            parts.append(part)
        return Choices.joined(parts)

    def _no_token(self, picked: Picked) -> EngineError | None:
        """What the sampler's marks in place of a token mean for the sequence."""
        if picked.token == NOT_FINITE:
            self.not_finite += 1
            reason = "the model computed logits that are not numbers"
            return EngineError("engine", reason, retryable=True, alone=True)
        if picked.token == NO_CHOICE:
            return EngineError(
                "invalid", "logit_bias and penalties leave no token to choose", alone=True
            )
        return None
