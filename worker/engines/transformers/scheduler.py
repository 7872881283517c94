"""What each step computes, over slots: who gets one, which chunks of prompts are read, who moves by a token.

On a GPU the host is a step ahead: a step is queued before the tokens of the one before are looked at, so turning
tokens into text and telling readers costs the device nothing. A sequence that turns out to have ended was computed
once more than needed.
"""

import time
from collections import deque
from typing import NamedTuple

import structlog
import torch

from worker.engines.transformers.errors import step_error
from worker.engines.transformers.model.cuda_graphs import MAX_CHUNKS
from worker.engines.transformers.model.loaded import LoadedModel, ModelRunner
from worker.engines.transformers.model.step import PrefillChunk
from worker.engines.transformers.output_processor import OutputProcessor
from worker.engines.transformers.prefill_budget import PrefillBudget, shares
from worker.engines.transformers.prefix_cache import Slots, common
from worker.engines.transformers.sampling.sampler import Sampler
from worker.engines.transformers.sampling.sampler_output import SamplerOutput
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence

log = structlog.get_logger(__name__)

_WORTH_WAITING = (
    64  # tokens that a prompt being read shares with another one: that one waits for them
)


class _Row:
    """A sequence in its slot."""

    def __init__(self, sequence: Sequence, slot: int, held: int) -> None:
        self.sequence = sequence
        self.slot = slot
        self.ids = sequence.ids  # what is read before a token is chosen
        self.most = sequence.left  # tokens that it may have from here on
        self.read = held  # tokens of its prompt whose keys and values are in the slot
        self.taken: list[int] = []  # the tokens chosen since, as far as the host knows them
        self.asked = 0  # tokens chosen since, known or not

    @property
    def position(self) -> int:
        """Where its newest token is computed."""
        return len(self.ids) + self.asked - 1

    @property
    def wants(self) -> bool:
        """It may have another token."""
        return not self.sequence.finished and self.asked < self.most

    def read_anew(self) -> None:
        """All of it is a prompt from now on."""
        self.ids = [*self.ids, *self.taken]
        self.most -= self.asked
        self.read, self.taken, self.asked = 0, [], 0


class _Made(NamedTuple):
    rows: list[_Row]
    choices: SamplerOutput


class SlotScheduler:
    """Keeps the `Scheduler` protocol, over slots."""

    def __init__(self, loaded: LoadedModel, runner: ModelRunner) -> None:
        self._runner = runner
        self._budget = PrefillBudget(loaded.prefill_tokens, timed=not runner.asynchronous)
        self._slots = Slots(runner.slots)
        self._sampler = Sampler(runner.slots, loaded.vocabulary, runner.device)
        self._waiting: deque[Sequence] = deque()
        self._reading: list[_Row] = []
        self._running: list[_Row] = []
        self._made: deque[_Made] = deque()  # not looked at yet
        self._output = OutputProcessor()

    @property
    def has_work(self) -> bool:
        """There is something to compute or to look at."""
        return bool(self._waiting or self._reading or self._running or self._made)

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since the start, and how many of them were held already."""
        return self._slots.asked, self._slots.reused

    @property
    def not_finite(self) -> int:
        """Answers that ended because the model's logits were not numbers."""
        return self._output.not_finite

    def add(self, sequence: Sequence) -> None:
        """Takes a prepared sequence in."""
        self._waiting.append(sequence)

    def unfinished(self) -> list[Sequence]:
        """All that have not ended."""
        return [*self._waiting, *_sequences([*self._reading, *self._running])]

    def step(self) -> StepOutput:
        """A bounded part of the newcomers' prompts, then a token for everyone who runs."""
        self._leave()
        self._seat()
        before = len(self._made)
        self._read()
        self._decode()
        fresh = len(self._made) - before
        unread = fresh if self._runner.asynchronous else 0
        while len(self._made) > unread:
            self._look()
        return self._output.take()

    def take_output(self) -> StepOutput:
        """What came of a step that was broken off."""
        return self._output.take()

    def _leave(self) -> None:
        """Rows that have ended give their slots back."""
        for rows in (self._reading, self._running):
            for row in [row for row in rows if row.sequence.finished]:
                try:
                    self._give_back(row)
                except Exception:  # the row stays where it is, so the next step tries again
                    log.exception("a slot could not be given back", slot=row.slot)
                    row.sequence.failed = True
                else:
                    rows.remove(row)

    def _give_back(self, row: _Row) -> None:
        if row.sequence.failed:
            self._slots.void(row.slot)
        elif row.read >= len(row.ids):  # the newest token's keys may not have been computed
            self._slots.read(row.slot, row.taken[:-1])
        self._slots.leave(row.slot)

    def _seat(self) -> None:
        """Waiting sequences take free slots, first come first seated, but for those that gain by waiting."""
        for sequence in list(self._waiting):
            if not sequence.finished:
                with self._output.alone(sequence):
                    self._seat_one(sequence)
                if sequence.failed:
                    self._slots.keep({row.slot for row in [*self._reading, *self._running]})
            if sequence.finished and sequence in self._waiting:
                self._waiting.remove(sequence)

    def _seat_one(self, sequence: Sequence) -> None:
        if not self._slots.free or self._gains_by_waiting(sequence):
            return
        reuse = not sequence.sampling.reproducible
        seat = self._slots.take(sequence.ids, reuse=reuse, group=self._group(sequence.ids))
        row = _Row(sequence, seat.slot, seat.held)
        self._waiting.remove(sequence)
        self._reading.append(
            row
        )  # from here on its slot is given back when it ends, also by what fails below
        if seat.source is not None:
            self._runner.copy_prefix(seat.source, seat.slot, seat.held)
        self._sampler.assign(seat.slot, sequence.sampling, sequence.prompt, sequence.answer)

    def _gains_by_waiting(self, sequence: Sequence) -> bool:
        """A prompt that begins like this one is being read just now: its keys and values can be had for a copy soon."""
        if not self._reading or sequence.sampling.reproducible:
            return False
        soon = max(common(row.sequence.ids, sequence.ids) for row in self._reading)
        return soon >= _WORTH_WAITING and soon >= self._slots.shared(sequence.ids) + _WORTH_WAITING

    def _read(self) -> None:
        """The next tokens of the prompts that are being read, as many as a step may hold."""
        reading = [row for row in self._reading if not row.sequence.finished][:MAX_CHUNKS]
        decoding = any(row.wants for row in self._running)
        counts = shares(
            [len(row.ids) - row.read for row in reading], self._budget.tokens(decoding=decoding)
        )
        rows: list[_Row] = []
        chunks: list[PrefillChunk] = []
        for row, count in zip(reading, counts, strict=True):
            if count > 0:
                rows.append(row)
                chunks.append(PrefillChunk(row.slot, row.read, count, len(row.ids)))
        if rows:
            began = time.monotonic()
            with self._output.together(_sequences(rows)):
                self._prefill_chunks(rows, chunks)
            self._budget.observe(sum(counts), time.monotonic() - began)

    def _prefill_chunks(self, rows: list[_Row], chunks: list[PrefillChunk]) -> None:
        parts = [row.ids[chunk.start : chunk.end] for row, chunk in zip(rows, chunks, strict=True)]
        ends = [chunk.end == len(row.ids) for row, chunk in zip(rows, chunks, strict=True)]
        logits = self._runner.prefill(chunks, parts, ends, batch_invariant=_batch_invariant(rows))
        for row, part in zip(rows, parts, strict=True):
            row.read += len(part)
            with self._output.alone(row.sequence):
                self._slots.read(row.slot, part)
        done = [row for row, end in zip(rows, ends, strict=True) if end]
        if done:
            with self._output.together(_sequences(done)):
                self._choose(done, logits)
            self._running += done
            self._reading = [row for row in self._reading if row not in done]

    def _decode(self) -> None:
        """One token for each row that may have one."""
        rows = [row for row in self._running if row.wants]
        if self._runner.rope_limit is not None:
            self._read_anew()
            rows = [row for row in self._running if row.wants and not self._outgrows(row)]
        if rows:
            with self._output.together(_sequences(rows)):
                slots = [row.slot for row in rows]
                self._choose(
                    rows,
                    self._runner.decode(
                        slots,
                        [row.position for row in rows],
                        batch_invariant=_batch_invariant(rows),
                    ),
                )

    def _outgrows(self, row: _Row) -> bool:
        """The row has come to where its rotary frequencies change, and its former keys with them."""
        limit = self._runner.rope_limit
        return limit is not None and limit.prefill_again and row.position == limit.tokens

    def _read_anew(self) -> None:
        """Such rows go back to those who read, once all of their tokens are known."""
        for row in list(self._running):
            if row.wants and self._outgrows(row) and len(row.taken) == row.asked:
                row.read_anew()
                self._slots.restart(row.slot, self._group(row.ids))
                self._running.remove(row)
                self._reading.append(row)

    def _group(self, tokens: list[int]) -> int:
        """See `Slots.take`."""
        return 0 if self._runner.rope_limit is None else self._runner.rope_limit.group(len(tokens))

    def _choose(self, rows: list[_Row], logits: torch.Tensor) -> None:
        choices = self._output.sample(
            self._sampler, logits, [row.slot for row in rows], _sequences(rows)
        )
        self._runner.feed(choices.tokens)
        for row in rows:
            row.asked += 1
        self._made.append(_Made(rows, choices))

    def _look(self) -> None:
        """The tokens of the oldest step not looked at yet; waits for the device."""
        rows, choices = self._made.popleft()
        try:
            choices.wait()
            self._runner.check()
        except Exception as error:  # whatever the device reports now, perhaps of an earlier step
            log.exception("a step failed", jobs=len(rows))
            self._output.fail(_sequences(rows), step_error(error))
            self._slots.forget()
            return
        for number, row in enumerate(rows):
            token = self._output.advance(row.sequence, choices, number)
            if token is not None:
                row.taken.append(token)


def _sequences(rows: list[_Row]) -> list[Sequence]:
    return [row.sequence for row in rows]


def _batch_invariant(rows: list[_Row]) -> bool:
    """Somebody among them named a seed."""
    return any(row.sequence.sampling.reproducible for row in rows)
