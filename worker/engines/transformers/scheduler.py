"""What each step computes on the model runner: who gets a slot, which prompts advance, who decodes.

On a GPU the host is a step ahead: it queues a step before it looks at the tokens of the one before,
so turning tokens into text costs the device no time. A sequence that turns out to have finished was
then computed one step too long.
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
from worker.engines.transformers.prefill_budget import PrefillBudget, divide_budget
from worker.engines.transformers.prefix_cache import PrefixCache, common_prefix
from worker.engines.transformers.sampling.sampler import Sampler
from worker.engines.transformers.sampling.sampler_output import SamplerOutput
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence, SequenceStatus

log = structlog.get_logger(__name__)

# A prompt waits for another one that is in prefill if it gains so many cached tokens by that.
_WORTH_WAITING = 64


class _Row:
    """A sequence in its slot."""

    def __init__(self, sequence: Sequence, slot: int, prefilled: int) -> None:
        self.sequence = sequence
        self.slot = slot
        self.prefill_ids = sequence.ids
        self.prefilled = prefilled  # tokens of `prefill_ids` whose keys and values are in the slot
        self.max_tokens = sequence.max_tokens  # that may follow `prefill_ids`
        self.sampled = 0  # tokens sampled since, known to the host or not
        self.known_ids: list[int] = []  # those of them that the host knows

    @property
    def position(self) -> int:
        """Where its newest token is computed."""
        return len(self.prefill_ids) + self.sampled - 1

    @property
    def needs_token(self) -> bool:
        """Whether another token may be sampled for it."""
        return self.sampled < self.max_tokens and not self.sequence.finished

    def restart_prefill(self) -> None:
        """All its tokens are a prompt from now on."""
        self.prefill_ids = [*self.prefill_ids, *self.known_ids]
        self.max_tokens -= self.sampled
        self.prefilled, self.sampled, self.known_ids = 0, 0, []


class _PendingStep(NamedTuple):
    """Tokens that were sampled but not looked at yet."""

    rows: list[_Row]
    tokens: SamplerOutput


class SlotScheduler:
    """Keeps the `Scheduler` protocol; the one owner of its sequences' status."""

    def __init__(self, loaded: LoadedModel, runner: ModelRunner) -> None:
        self._runner = runner
        self._budget = PrefillBudget(loaded.prefill_tokens, timed=not runner.asynchronous)
        self._prefix_cache = PrefixCache(runner.slots)
        self._sampler = Sampler(runner.slots, loaded.vocabulary, runner.device)
        self._waiting: deque[Sequence] = deque()
        self._prefilling: list[_Row] = []
        self._running: list[_Row] = []
        self._pending: deque[_PendingStep] = deque()
        self._output = OutputProcessor()

    @property
    def has_work(self) -> bool:
        """Whether there is something to compute or to look at."""
        return bool(self._waiting or self._prefilling or self._running or self._pending)

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since the start, and how many of them came from the prefix cache."""
        return self._prefix_cache.prompt_tokens, self._prefix_cache.cached_tokens

    @property
    def not_finite(self) -> int:
        """Answers that ended because of NaN or infinite logits."""
        return self._output.not_finite

    def add(self, sequence: Sequence) -> None:
        """Takes a prepared sequence in."""
        self._waiting.append(sequence)

    def unfinished(self) -> list[Sequence]:
        """Every sequence that still waits or runs."""
        return [*self._waiting, *_sequences(self._prefilling), *_sequences(self._running)]

    def step(self) -> StepOutput:
        """A bounded part of the waiting prompts, then a token for every running sequence."""
        self._release_finished()
        self._admit_waiting()
        before = len(self._pending)
        self._prefill()
        self._decode()
        queued = len(self._pending) - before
        unread = queued if self._runner.asynchronous else 0
        while len(self._pending) > unread:
            self._process_oldest()
        return self._output.take()

    def take_output(self) -> StepOutput:
        """What a step made before an error broke it off."""
        return self._output.take()

    # ---- slots

    def _release_finished(self) -> None:
        for rows in (self._prefilling, self._running):
            finished = [row for row in rows if row.sequence.finished]
            for row in finished:
                try:
                    self._release(row)
                except Exception:  # the row stays, so the next step tries again
                    log.exception("a slot could not be given back", slot=row.slot)
                    row.sequence.fail()
                else:
                    rows.remove(row)

    def _release(self, row: _Row) -> None:
        if row.sequence.failed:
            self._prefix_cache.invalidate(row.slot)
        elif row.prefilled >= len(row.prefill_ids):
            # the newest token's keys may not have been computed
            self._prefix_cache.extend(row.slot, row.known_ids[:-1])
        self._prefix_cache.release(row.slot)

    def _admit_waiting(self) -> None:
        """Gives free slots to waiting sequences in order, but for those that gain by waiting."""
        for sequence in list(self._waiting):
            if not sequence.finished:
                with self._output.alone(sequence):
                    self._admit(sequence)
                if sequence.failed:
                    rows = [*self._prefilling, *self._running]
                    self._prefix_cache.release_all_but({row.slot for row in rows})
            if sequence.finished and sequence in self._waiting:
                self._waiting.remove(sequence)

    def _admit(self, sequence: Sequence) -> None:
        if not self._prefix_cache.free or self._gains_by_waiting(sequence):
            return
        slot, cached, source = self._prefix_cache.allocate(
            sequence.ids,
            reuse=not sequence.sampling.reproducible,
            group=self._length_group(sequence.ids),
        )
        # In the list, its slot is released when it ends, also by what fails below.
        self._waiting.remove(sequence)
        self._prefilling.append(_Row(sequence, slot, cached))
        sequence.status = SequenceStatus.PREFILL
        if source is not None:
            self._runner.copy_prefix(source, slot, cached)
        self._sampler.assign(slot, sequence.sampling, sequence.prompt, sequence.answer)

    def _gains_by_waiting(self, sequence: Sequence) -> bool:
        """Whether a prompt in prefill begins like this one: soon its keys can be copied."""
        if not self._prefilling or sequence.sampling.reproducible:
            return False
        soon = max(common_prefix(row.sequence.ids, sequence.ids) for row in self._prefilling)
        if soon < _WORTH_WAITING:
            return False
        return soon >= self._prefix_cache.longest_match(sequence.ids) + _WORTH_WAITING

    def _length_group(self, tokens: list[int]) -> int:
        """See `PrefixCache.allocate`."""
        limit = self._runner.rope_limit
        return 0 if limit is None else limit.group(len(tokens))

    # ---- prefill

    def _prefill(self) -> None:
        """Computes the next chunks of prompts, as many tokens as the budget allows."""
        candidates = [row for row in self._prefilling if not row.sequence.finished][:MAX_CHUNKS]
        if not candidates:
            return
        decoding = any(row.needs_token for row in self._running)
        remaining = [len(row.prefill_ids) - row.prefilled for row in candidates]
        counts = divide_budget(remaining, self._budget.tokens(decoding=decoding))
        rows: list[_Row] = []
        chunks: list[PrefillChunk] = []
        for row, count in zip(candidates, counts, strict=True):
            if count > 0:
                rows.append(row)
                chunks.append(PrefillChunk(row.slot, row.prefilled, count, len(row.prefill_ids)))
        if rows:
            began = time.monotonic()
            with self._output.together(_sequences(rows)):
                self._prefill_chunks(rows, chunks)
            self._budget.observe(sum(counts), time.monotonic() - began)

    def _prefill_chunks(self, rows: list[_Row], chunks: list[PrefillChunk]) -> None:
        parts: list[list[int]] = []
        ends_prompt: list[bool] = []
        complete: list[_Row] = []
        for row, chunk in zip(rows, chunks, strict=True):
            parts.append(row.prefill_ids[chunk.start : chunk.end])
            ends_prompt.append(chunk.end == len(row.prefill_ids))
            if ends_prompt[-1]:
                complete.append(row)
        logits = self._runner.prefill(
            chunks, parts, ends_prompt, batch_invariant=_batch_invariant(rows)
        )
        for row, part in zip(rows, parts, strict=True):
            row.prefilled += len(part)
            with self._output.alone(row.sequence):
                self._prefix_cache.extend(row.slot, part)
        if complete:
            with self._output.together(_sequences(complete)):
                self._sample(complete, logits)
            self._start_decoding(complete)

    def _start_decoding(self, rows: list[_Row]) -> None:
        for row in rows:
            self._prefilling.remove(row)
            if row.sequence.status is SequenceStatus.PREFILL:  # it may have failed
                row.sequence.status = SequenceStatus.RUNNING
        self._running += rows

    # ---- decoding

    def _decode(self) -> None:
        """Computes a token for every row that may have one."""
        if self._runner.rope_limit is not None:
            self._restart_outgrown()
        rows = [row for row in self._running if row.needs_token]
        if self._runner.rope_limit is not None:
            rows = [row for row in rows if not self._outgrows(row)]
        if rows:
            slots = [row.slot for row in rows]
            positions = [row.position for row in rows]
            with self._output.together(_sequences(rows)):
                logits = self._runner.decode(
                    slots, positions, batch_invariant=_batch_invariant(rows)
                )
                self._sample(rows, logits)

    def _outgrows(self, row: _Row) -> bool:
        """Whether the rotary frequencies change at this length, and with them all former keys."""
        limit = self._runner.rope_limit
        return limit is not None and limit.prefill_again and row.position == limit.tokens

    def _restart_outgrown(self) -> None:
        """Such rows go through prefill again, once the host knows all their tokens."""
        for row in list(self._running):
            all_known = len(row.known_ids) == row.sampled
            if all_known and row.needs_token and self._outgrows(row):
                row.restart_prefill()
                self._prefix_cache.restart(row.slot, self._length_group(row.prefill_ids))
                self._running.remove(row)
                self._prefilling.append(row)
                row.sequence.status = SequenceStatus.PREFILL

    # ---- tokens

    def _sample(self, rows: list[_Row], logits: torch.Tensor) -> None:
        slots = [row.slot for row in rows]
        tokens = self._output.sample(self._sampler, logits, slots, _sequences(rows))
        self._runner.feed(tokens.tokens)
        for row in rows:
            row.sampled += 1
        self._pending.append(_PendingStep(rows, tokens))

    def _process_oldest(self) -> None:
        """Appends the tokens of the oldest pending step; waits for the device."""
        rows, tokens = self._pending.popleft()
        try:
            tokens.wait()
            self._runner.check()
        except Exception as error:  # whatever the device reports now, perhaps of an earlier step
            log.exception("a step failed", jobs=len(rows))
            self._output.fail(_sequences(rows), step_error(error))
            self._prefix_cache.clear()
            return
        for number, row in enumerate(rows):
            token = self._output.advance(row.sequence, tokens, number)
            if token is not None:
                row.known_ids.append(token)


def _sequences(rows: list[_Row]) -> list[Sequence]:
    return [row.sequence for row in rows]


def _batch_invariant(rows: list[_Row]) -> bool:
    """Whether a request among them named a seed, and so wants the same text in any batch."""
    return any(row.sequence.sampling.reproducible for row in rows)
