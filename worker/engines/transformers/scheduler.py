"""What each step computes on the model runner: who gets memory, which prompts advance, who decodes.

Where the KV cache has blocks, a sequence takes them as it grows. When none is left, the youngest
sequence is preempted: it gives its blocks back and waits, and its tokens are computed again later.

On a GPU the host is a step ahead: it queues a step before it looks at the tokens of the one before,
so turning tokens into text costs the device no time. A sequence that turns out to have finished was
then computed one step too long.
"""

import time
from collections import deque
from typing import NamedTuple

import structlog
import torch

from worker.engines.transformers.admission import SequenceSizes
from worker.engines.transformers.cache.manager import KVCacheManager, Refusal
from worker.engines.transformers.cache.paged_cache import PagedCache
from worker.engines.transformers.cache.slot_cache import SlotCache
from worker.engines.transformers.errors import step_error
from worker.engines.transformers.model.cache_size import BLOCK_SIZE
from worker.engines.transformers.model.cuda_graphs import (
    INVARIANT_ROWS,
    MAX_CHUNKS,
    mixed_sizes,
)
from worker.engines.transformers.model.loaded import LoadedModel, ModelRunner
from worker.engines.transformers.model.step import BlockRange, DecodeRows, PrefillChunk
from worker.engines.transformers.output_processor import OutputProcessor
from worker.engines.transformers.prefill_budget import PrefillBudget, divide_budget
from worker.engines.transformers.row import Row
from worker.engines.transformers.sampling.prompt_logprobs import rows_at_once
from worker.engines.transformers.sampling.sampler import Sampler
from worker.engines.transformers.sampling.sampler_output import SamplerOutput
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence, SequenceStatus

log = structlog.get_logger(__name__)


class _PrefillPlan(NamedTuple):
    """The next chunks of prompts."""

    rows: list[Row]
    chunks: list[PrefillChunk]
    tokens: list[list[int]]
    ends_prompt: list[bool]

    @property
    def token_count(self) -> int:
        """Of all chunks."""
        return sum(chunk.length for chunk in self.chunks)


class _PendingStep(NamedTuple):
    """Tokens that were sampled but not looked at yet."""

    rows: list[Row]
    tokens: SamplerOutput
    prefilled: int  # prompt tokens that were computed, too
    passes: int  # since the pending step before: one that computes prompts alone samples nothing


class SlotScheduler:
    """Keeps the `Scheduler` protocol; the one owner of its sequences' status."""

    def __init__(self, loaded: LoadedModel, runner: ModelRunner) -> None:
        self._runner = runner
        self._budget = PrefillBudget(
            loaded.prefill_tokens,
            sizes=mixed_sizes(runner.slots) if runner.asynchronous else (),
            step_seconds=loaded.step_seconds,
        )
        self._passes = 0  # queued since the latest pending step
        self._completed: float | None = None  # when the last step was, if the device is busy since
        self._cache = _make_cache(runner)
        self._sizes = SequenceSizes()
        self._sampler = Sampler(runner.slots, loaded.vocabulary, runner.device)
        self._logits_rows = rows_at_once(loaded.vocabulary, runner.device)
        self._waiting: deque[Row] = deque()
        self._prefilling: list[Row] = []
        self._running: list[Row] = []
        self._preempted: list[Row] = []  # until the host knows all their tokens
        self._new_blocks: list[BlockRange] = []  # that the runner does not know yet
        self._prefixes = self._cache.shared_prefixes  # as the runner knows them
        self._pending: deque[_PendingStep] = deque()
        self._output = OutputProcessor()
        self.usable_slots = runner.slots
        self._crowded = False  # the last sequence that was to be admitted had no room
        self._counted: tuple[int, ...] = ()  # sequences when `usable_slots` was counted

    @property
    def has_work(self) -> bool:
        """Whether there is something to compute or to look at."""
        return bool(
            self._waiting or self._prefilling or self._running or self._preempted or self._pending
        )

    @property
    def reuse(self) -> tuple[int, int]:
        """Prompt tokens since the start, and how many of them came from the prefix cache."""
        return self._cache.prompt_tokens, self._cache.cached_tokens

    @property
    def delay(self) -> float:
        """See Scheduler: of the steps that are queued."""
        return self._budget.seconds(sum(pending.prefilled for pending in self._pending))

    @property
    def not_finite(self) -> int:
        """Answers that ended because of NaN or infinite logits."""
        return self._output.not_finite

    def add(self, sequence: Sequence) -> None:
        """Takes a prepared sequence in."""
        self._waiting.append(Row(sequence))

    def unfinished(self) -> list[Sequence]:
        """Every sequence that still waits or runs."""
        rows = [*self._preempted, *self._waiting, *self._prefilling, *self._running]
        return [row.sequence for row in rows]

    def step(self) -> StepOutput:
        """A bounded part of the waiting prompts, then a token for every running sequence."""
        self._release_finished()
        self._requeue_preempted()
        self._admit_waiting()
        before = len(self._pending)
        self._compute()
        queued = len(self._pending) - before
        unread = queued if self._runner.asynchronous else 0
        while len(self._pending) > unread:
            self._process_oldest()
        self._begin_masks()
        self._count_usable_slots()
        return self._output.take()

    def take_output(self) -> StepOutput:
        """What a step made before an error broke it off."""
        return self._output.take()

    # ---- memory

    def _release_finished(self) -> None:
        for rows in (self._prefilling, self._running):
            finished = [row for row in rows if row.sequence.finished]
            for row in finished:
                try:
                    self._release(row)
                except Exception:  # the row stays, so the next step tries again
                    request_id = row.sequence.job.request_id
                    log.exception(
                        "a slot could not be given back", slot=row.slot, request_id=request_id
                    )
                    row.sequence.fail()
                else:
                    rows.remove(row)
                    if row.sequence.status is SequenceStatus.FINISHED and not row.wants_hidden:
                        self._sizes.observe(row)

    def _release(self, row: Row) -> None:
        self._new_blocks = [added for added in self._new_blocks if added.slot != row.slot]
        if row.sequence.failed:
            self._cache.invalidate(row.slot)
        elif row.prefilled >= len(row.prefill_ids):
            # the newest token's keys may not have been computed
            self._cache.extend(row.slot, row.known_ids[:-1])
        self._cache.release(row.slot)

    def _admit_waiting(self) -> None:
        """Gives memory to waiting sequences in order, but for those that gain by waiting."""
        self._crowded = False
        if not self._waiting:
            return
        reserved = self._sizes.reserved_tokens([*self._prefilling, *self._running])
        for row in list(self._waiting):
            if not self._crowded and not row.sequence.finished:
                with self._output.alone(row.sequence):
                    self._crowded = not self._admit(row, reserved)
                if row.slot >= 0:
                    reserved += self._sizes.reserved_tokens([row])
                if row.sequence.failed:
                    self._release_orphans()
            if row.sequence.finished and row in self._waiting:
                self._waiting.remove(row)

    def _release_orphans(self) -> None:
        """Frees what an admission broken off by an error has left without a sequence."""
        slots = {row.slot for row in (*self._prefilling, *self._running)}
        self._cache.release_all_but(slots)
        self._new_blocks = [added for added in self._new_blocks if added.slot in slots]

    def _admit(self, row: Row, reserved: int) -> bool:
        """False if there is no room, for any other sequence neither."""
        if row.keeps_place:  # it had memory, so the reserve is not for others
            reserved = 0
        allocation = self._cache.allocate(row.cache_request(self._runner.rope_limit, reserved))
        if isinstance(allocation, Refusal):
            return allocation is not Refusal.NO_ROOM
        row.slot = allocation.slot
        row.prefilled, row.shared, row.keeps_place = allocation.cached, allocation.shared, False
        if not row.answer:  # else its own tokens, preempted or delivered, may be among them
            row.sequence.cached_tokens = allocation.cached
        # In the list, its memory is released when it ends, also by what fails below.
        self._waiting.remove(row)
        self._prefilling.append(row)
        row.sequence.status = SequenceStatus.PREFILL
        if allocation.source is not None:
            self._runner.copy_prefix(allocation.source, row.slot, row.prefilled)
        self._add_blocks(row, allocation.blocks)
        sequence = row.sequence
        self._sampler.assign(
            row.slot,
            sequence.sampling,
            sequence.prompt,
            row.answer,
            sequence.guide,
            sequence.end_rule,
        )
        return True

    def _add_blocks(self, row: Row, blocks: tuple[int, ...]) -> None:
        if not self._runner.blocks:
            row.capacity = self._runner.context
        elif blocks:
            self._new_blocks.append(BlockRange(row.slot, row.capacity // BLOCK_SIZE, blocks))
            row.capacity += len(blocks) // len(self._runner.windows) * BLOCK_SIZE

    def _send_blocks(self) -> None:
        """Tells the runner of new and of shared blocks before it computes with them."""
        if self._new_blocks:
            self._runner.set_blocks(self._new_blocks)
            self._new_blocks = []  # not before: a call that failed is made again
        prefixes = self._cache.shared_prefixes
        if prefixes is not self._prefixes:
            self._runner.share_prefixes(prefixes)
            self._prefixes = prefixes

    def _count_usable_slots(self) -> None:
        """As many sequences of the usual size as the cache has room for, running ones included."""
        rows = [*self._prefilling, *self._running]
        counted = len(rows), len(self._waiting), len(self._preempted), self._crowded
        if not isinstance(self._cache, PagedCache) or counted == self._counted:
            return
        self._counted = counted  # answers are reserved beforehand, so nothing else changes it much
        used, room = sum(counted[:3]), 0
        if not self._crowded and not self._preempted:
            reserved = self._sizes.reserved_tokens(rows)
            room = self._sizes.room(self._cache.free_tokens - reserved)
        self.usable_slots = max(1, min(self._runner.slots, used + room))

    # ---- preemption

    def _grow(self, row: Row) -> None:
        """Makes room for the row's newest token, or preempts the row itself."""
        while row.slot >= 0 and row.capacity <= row.position:
            blocks = self._cache.grow(row.slot, row.position + 1)
            if blocks is None:
                victim = self._youngest()
                if victim is None:
                    return  # what has finished gives its memory back before the next step
                self._preempt(victim)
            else:
                self._add_blocks(row, blocks)

    def _youngest(self) -> Row | None:
        """Who gives way: of the sequences that have memory the latest to get it, but rather not
        one whose text must not depend on how it is computed.
        """
        youngest: Row | None = None
        for row in (*self._running, *self._prefilling):
            if not row.sequence.finished and (youngest is None or not row.reproducible):
                youngest = row
        return youngest

    def _preempt(self, row: Row) -> None:
        """Takes the row's memory; what it has computed stays cached while nobody needs the room."""
        log.info("preempted", request_id=row.sequence.job.request_id, tokens=row.position + 1)
        with self._output.alone(row.sequence):
            self._release(row)
        if row.sequence.finished:
            return  # `_release_finished` releases it, perhaps again
        if row in self._running:
            self._running.remove(row)
        else:
            self._prefilling.remove(row)
        self._preempted.append(row)
        row.sequence.status = SequenceStatus.WAITING
        row.slot = -1

    def _requeue_preempted(self) -> None:
        """Before those that wait; preempted in one step, the youngest came first."""
        for row in list(self._preempted):
            if row.sequence.finished:
                self._preempted.remove(row)
            elif row.all_known:
                self._preempted.remove(row)
                row.prefill_again()
                self._waiting.appendleft(row)

    # ---- one step

    def _compute(self) -> None:
        """Prompts and decoding rows in one pass where the runner can, else in one pass each."""
        self._preempt_outgrown()
        with_logits = self._plan_with_logits()
        if with_logits.rows:
            with self._output.together(_sequences(with_logits.rows)):
                self._prefill_with_logits(with_logits)
        hidden = self._plan_hidden()
        if hidden.rows:
            with self._output.together(_sequences(hidden.rows)):
                self._prefill_hidden(hidden)
        decoding: list[Row] = []
        if self._may_mix():
            decoding = self._rows_with_room()
        plan = self._plan_prefill()
        if plan.rows and decoding and self._compute_together(plan, decoding):
            return
        if plan.rows:
            with self._output.together(_sequences(plan.rows)):
                self._prefill(plan, [])
        self._decode(self._rows_with_room())

    def _may_mix(self) -> bool:
        """A constant batch shape keeps rows from being computed beside prompts."""
        if not self._runner.blocks or not self._prefilling:
            return False
        return not _batch_invariant([*self._prefilling, *self._running])

    def _compute_together(self, plan: _PrefillPlan, decoding: list[Row]) -> bool:
        """False if it failed: computed apart, a failure stays with those who are its cause."""
        try:
            self._prefill(plan, decoding)
        except Exception:  # whatever a model or a device raises
            log.exception("a step failed, trying again with prompts and answers apart")
            return False
        return True

    # ---- prefill

    def _plan_prefill(self) -> _PrefillPlan:
        """The next chunks of prompts, as many tokens as the budget allows."""
        candidates = self._prefilling_rows()
        if _batch_invariant(candidates):
            budget = self._budget.max_tokens
        else:
            budget = self._budget.tokens(sum(row.needs_token for row in self._running))
        return _make_plan(candidates, budget)

    def _plan_with_logits(self) -> _PrefillPlan:
        """The same for prompts whose own logits are needed: few tokens, as logits are large."""
        candidates = self._prefilling_rows(wants_logits=True)
        if _batch_invariant(candidates):
            candidates = candidates[:1]
        return _make_plan(candidates, self._logits_rows)

    def _plan_hidden(self) -> _PrefillPlan:
        """The same for texts that become vectors: at most half of the budget beside others."""
        budget = self._budget.tokens(sum(row.needs_token for row in self._running))
        candidates = self._prefilling_rows(wants_hidden=True)
        if len(candidates) < len(self._prefilling):
            budget = -(-budget // 2)
        return _make_plan(candidates, budget)

    def _prefilling_rows(
        self, *, wants_logits: bool = False, wants_hidden: bool = False
    ) -> list[Row]:
        rows: list[Row] = []
        for row in self._prefilling:
            wants = row.wants_logits, row.wants_hidden
            if not row.sequence.finished and wants == (wants_logits, wants_hidden):
                rows.append(row)
        return rows[:MAX_CHUNKS]

    def _prefill_hidden(self, plan: _PrefillPlan) -> None:
        """Computes the plan, and pools its hidden states."""
        self._passes += 1
        self._send_blocks()
        states = self._runner.prefill(plan.chunks, plan.tokens, plan.ends_prompt, hidden=True)
        parts = states.split([chunk.length for chunk in plan.chunks])
        for number, (row, chunk) in enumerate(zip(plan.rows, plan.chunks, strict=True)):
            row.prefilled += chunk.length
            with self._output.alone(row.sequence):
                self._cache.extend(row.slot, plan.tokens[number])
                if row.sequence.pooled is not None:
                    row.sequence.pooled.add(chunk.start, parts[number])
                if plan.ends_prompt[number]:
                    self._output.end_prompt(row.sequence)

    def _prefill_with_logits(self, plan: _PrefillPlan) -> None:
        """Computes the plan, and how likely its tokens were."""
        self._passes += 1
        self._send_blocks()
        logits = self._runner.prefill(plan.chunks, plan.tokens, plan.ends_prompt, every_token=True)
        parts = logits.split([chunk.length for chunk in plan.chunks])
        for row, chunk, part in zip(plan.rows, plan.chunks, parts, strict=True):
            with self._output.alone(row.sequence):
                if row.sequence.prompt_logprobs is not None:
                    row.sequence.prompt_logprobs.add(chunk.start, part)
        last = [part[-1] for part, ends in zip(parts, plan.ends_prompt, strict=True) if ends]
        self._advance_prompts(plan, [], torch.stack(last) if last else logits[:0])

    def _prefill(self, plan: _PrefillPlan, decoding: list[Row]) -> None:
        """Computes the plan, and the newest tokens of the rows `decoding` in the same pass."""
        began = time.monotonic()
        self._passes += 1
        self._send_blocks()
        logits = self._runner.prefill(
            plan.chunks,
            plan.tokens,
            plan.ends_prompt,
            _decode_rows(decoding),
            batch_invariant=_batch_invariant(plan.rows),
        )
        self._advance_prompts(plan, decoding, logits)
        if not self._runner.asynchronous:
            self._budget.observe(plan.token_count, time.monotonic() - began)

    def _advance_prompts(
        self, plan: _PrefillPlan, decoding: list[Row], logits: torch.Tensor
    ) -> None:
        """The plan is computed: samples `decoding`, and the rows whose prompts are complete."""
        for row, part in zip(plan.rows, plan.tokens, strict=True):
            row.prefilled += len(part)
            with self._output.alone(row.sequence):
                self._cache.extend(row.slot, part)
        ended = zip(plan.rows, plan.ends_prompt, strict=True)
        complete = [row for row, ends_prompt in ended if ends_prompt]
        for row in complete:
            if not row.sequence.finished:
                with self._output.alone(row.sequence):
                    self._output.end_prompt(row.sequence)
        sampled = [*decoding, *complete]
        if sampled:
            with self._output.together(_sequences(sampled)):
                self._sample(sampled, logits, plan.token_count)
            self._start_decoding(complete)

    def _start_decoding(self, rows: list[Row]) -> None:
        for row in rows:
            self._prefilling.remove(row)
            if row.sequence.status is SequenceStatus.PREFILL:  # it may have failed
                row.sequence.status = SequenceStatus.RUNNING
        self._running += rows

    # ---- decoding

    def _decode(self, rows: list[Row]) -> None:
        """Computes a token for every row."""
        for batch in _batches(rows):
            with self._output.together(_sequences(batch)):
                self._passes += 1
                self._send_blocks()
                slots, positions = _decode_rows(batch)
                logits = self._runner.decode(
                    slots, positions, batch_invariant=_batch_invariant(batch)
                )
                self._sample(batch, logits)

    def _rows_with_room(self) -> list[Row]:
        """The rows that get a token, each with room for it."""
        rows = [row for row in self._running if row.needs_token and not self._outgrows(row)]
        crowded = [row for row in rows if row.capacity <= row.position]
        for row in crowded:
            if row.slot >= 0:  # it was not preempted for one before it
                with self._output.alone(row.sequence):
                    self._grow(row)
        if not crowded:
            return rows
        return [row for row in rows if row.slot >= 0 and row.capacity > row.position]

    def _outgrows(self, row: Row) -> bool:
        """Whether the rotary frequencies change at this length, and with them all former keys."""
        limit = self._runner.rope_limit
        return limit is not None and limit.prefill_again and row.position == limit.tokens

    def _preempt_outgrown(self) -> None:
        """Such rows go through prefill again, once the host knows all their tokens."""
        if self._runner.rope_limit is None:
            return
        for row in list(self._running):
            if row.all_known and row.needs_token and self._outgrows(row):
                row.keeps_place = True
                self._preempt(row)

    # ---- tokens

    def _sample(self, rows: list[Row], logits: torch.Tensor, prefilled: int = 0) -> None:
        slots = [row.slot for row in rows]
        while self._pending and any(row.awaits_tokens for row in rows):
            self._process_oldest()  # meanwhile the device computes these logits
        tokens = self._output.sample(self._sampler, logits, slots, _sequences(rows))
        self._runner.feed(tokens.tokens)
        for row in rows:
            row.sampled += 1
        self._pending.append(_PendingStep(rows, tokens, prefilled, self._passes))
        self._passes = 0

    def _begin_masks(self) -> None:
        """While the next step is computed; a GPU's tokens are not known before that is queued."""
        guided = [row for row in self._running if row.sequence.guide is not None]
        known = [row.slot for row in guided if row.all_known and not row.sequence.finished]
        if known:
            self._sampler.begin_masks(known)

    def _process_oldest(self) -> None:
        """Appends the tokens of the oldest pending step; waits for the device."""
        rows, tokens, prefilled, passes = self._pending.popleft()
        try:
            tokens.wait()
            self._observe_step(prefilled, passes)
            self._runner.check()
        except Exception as error:  # whatever the device reports now, perhaps of an earlier step
            ids = [sequence.job.request_id for sequence in _sequences(rows)]
            log.exception("a step failed", request_ids=ids)
            self._output.fail(_sequences(rows), step_error(error))
            self._cache.clear()
            return
        for number, row in enumerate(rows):
            token = self._output.advance(row.sequence, tokens, number)
            if token is not None:
                row.known_ids.append(token)

    def _observe_step(self, prefilled: int, passes: int) -> None:
        """A step of a GPU has ended; it began when the one before ended, if it was queued then."""
        now = time.monotonic()
        if self._completed is not None and passes == 1:
            self._budget.observe_step(prefilled, now - self._completed)
        self._completed = now if self._pending else None


def _make_plan(rows: list[Row], budget: int) -> _PrefillPlan:
    """The rows' next chunks, `budget` tokens in all."""
    counts = divide_budget([len(row.prefill_ids) - row.prefilled for row in rows], budget)
    plan = _PrefillPlan([], [], [], [])
    for row, count in zip(rows, counts, strict=True):
        if count > 0:
            chunk = PrefillChunk(row.slot, row.prefilled, count, len(row.prefill_ids))
            plan.rows.append(row)
            plan.chunks.append(chunk)
            plan.tokens.append(row.prefill_ids[chunk.start : chunk.end])
            plan.ends_prompt.append(chunk.end == len(row.prefill_ids))
    return plan


def _make_cache(runner: ModelRunner) -> KVCacheManager:
    if runner.blocks:
        return PagedCache(
            runner.slots,
            runner.blocks,
            BLOCK_SIZE,
            runner.windows,
            prefix_tile_rows=runner.prefix_tile_rows,
        )
    return SlotCache(runner.slots)


def _sequences(rows: list[Row]) -> list[Sequence]:
    return [row.sequence for row in rows]


def _decode_rows(rows: list[Row]) -> DecodeRows:
    return DecodeRows([row.slot for row in rows], [row.position for row in rows])


def _batch_invariant(rows: list[Row]) -> bool:
    """Whether one of them wants the same text in any batch."""
    return any(row.reproducible for row in rows)


def _batches(rows: list[Row]) -> list[list[Row]]:
    """All rows at once, unless some need a constant batch shape, which is smaller."""
    if len(rows) <= INVARIANT_ROWS or not _batch_invariant(rows):
        return [rows] if rows else []
    invariant = [row for row in rows if row.reproducible]
    batches = [[row for row in rows if not row.reproducible]]
    for first in range(0, len(invariant), INVARIANT_ROWS):
        batches.append(invariant[first : first + INVARIANT_ROWS])
    return [batch for batch in batches if batch]
