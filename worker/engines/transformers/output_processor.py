"""From a step's tokens to its output, and which sequences a failure on the way ends.

A failure ends its own sequence, or those of its forward pass, and no other. Both schedulers run
every piece of work through one of the methods here.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager

import structlog
import torch

from worker.engines.base import EngineError, InvalidRequest
from worker.engines.transformers.errors import NotFiniteLogits, sequence_error, step_error
from worker.engines.transformers.sampling.sampler import Sampler
from worker.engines.transformers.sampling.sampler_output import (
    NO_CHOICE,
    NOT_FINITE,
    SampledToken,
    SamplerOutput,
)
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence

log = structlog.get_logger(__name__)


class OutputProcessor:
    """Collects chunks and errors until `take`. Used by one thread."""

    def __init__(self) -> None:
        self.not_finite = 0  # answers that ended because of NaN or infinite logits
        self._output: StepOutput = []

    def take(self) -> StepOutput:
        """Everything since the last call."""
        output, self._output = self._output, []
        return output

    def advance(self, sequence: Sequence, tokens: SamplerOutput, row: int) -> int | None:
        """Appends row `row` of `tokens` to the sequence.

        None if the sequence has finished already, or this ended it by an error.
        """
        if sequence.finished:
            return None
        try:  # not `alone`, which takes longer than all of this: it runs for every row of a step
            sampled = tokens.sampled(row)
            if sampled.token < 0:
                raise self._mark_error(sampled)
            chunk = sequence.append_token(sampled)
            if chunk is not None:
                self._output.append((sequence.mailbox, chunk))
            return sampled.token
        except Exception as error:
            self._fail_alone(sequence, error)
            return None

    def end_prompt(self, sequence: Sequence) -> None:
        """The sequence's prompt is computed to its end."""
        chunk = sequence.end_prompt()
        if chunk is not None:
            self._output.append((sequence.mailbox, chunk))

    def fail(self, sequences: Iterable[Sequence], error: EngineError) -> None:
        """Ends those that have not finished yet."""
        for sequence in sequences:
            if not sequence.finished:
                sequence.fail()
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
            log.exception("a step failed", request_ids=_ids(sequences))
            self.fail(sequences, step_error(error))

    def sample(
        self, sampler: Sampler, logits: torch.Tensor, slots: list[int], sequences: Many[Sequence]
    ) -> SamplerOutput:
        """The next token of each row of `logits`.

        If sampling them together fails, each is sampled by itself: a row does not depend on the
        others, so that only the one that is the cause fails.
        """
        try:
            output = sampler.sample(logits, slots)
        except Exception:
            ids = _ids(sequences)
            log.exception("sampling failed, trying again row by row", request_ids=ids)
            output = self._sample_row_by_row(sampler, logits, slots, sequences)
        for slot, sequence in zip(slots, sequences, strict=True):
            try:  # as in `advance`
                sampler.advance(slot)
            except Exception as error:
                self._fail_alone(sequence, error)
        rows = sampler.rows_with_processors(slots)
        if rows:
            with self.together([sequences[row] for row in rows]):  # their counts may be wrong now
                sampler.count(output, slots, rows)
        return output

    def _sample_row_by_row(
        self, sampler: Sampler, logits: torch.Tensor, slots: list[int], sequences: Many[Sequence]
    ) -> SamplerOutput:
        parts: list[SamplerOutput] = []
        for row, (slot, sequence) in enumerate(zip(slots, sequences, strict=True)):
            part = SamplerOutput.failed_row(logits.device)
            with self.alone(sequence):
                part = sampler.sample(logits[row : row + 1], [slot])
            parts.append(part)
        return SamplerOutput.concatenated(parts)

    def _fail_alone(self, sequence: Sequence, error: Exception) -> None:
        if isinstance(error, EngineError):  # foreseen, so its message says enough
            log.warning("a sequence failed", request_id=sequence.job.request_id, reason=str(error))
            self.fail([sequence], error)
        else:
            log.exception("a sequence failed", request_id=sequence.job.request_id)
            self.fail([sequence], sequence_error(error))

    def _mark_error(self, sampled: SampledToken) -> EngineError:
        """What a mark in place of a token means for the sequence."""
        if sampled.token == NOT_FINITE:
            self.not_finite += 1
            return NotFiniteLogits()
        assert sampled.token == NO_CHOICE  # noqa: S101 - there are two marks
        return InvalidRequest("grammar, logit_bias and penalties leave no token to choose")


def _ids(sequences: Iterable[Sequence]) -> list[str]:
    return [sequence.job.request_id for sequence in sequences]
