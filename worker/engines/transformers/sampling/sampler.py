"""The next token of every row, each by its own settings and RNG, without waiting for the device.

Settings apply in the order that servers of OpenAI's interface share (vLLM's): what the grammar and
the least length allow, biases, repetition penalty, frequency and presence penalty, temperature,
min-p, top-k, top-p. A row's token depends on its logits, settings and RNG alone, whatever else is
sampled with it; see `truncation`.
"""

import math
import random
from collections.abc import Sequence as Many
from typing import Literal

import msgspec
import torch

from broker.wire import Sampling
from worker.engines.transformers.guidance.guide import Guide
from worker.engines.transformers.sampling.penalties import (
    LogitBias,
    TokenCounts,
    has_penalties,
    upload,
)
from worker.engines.transformers.sampling.sampler_output import (
    NO_CHOICE,
    NOT_FINITE,
    Logprobs,
    SamplerOutput,
)
from worker.engines.transformers.sampling.token_lists import FEW
from worker.engines.transformers.sampling.token_masks import NO_END_RULE, EndRule, TokenMasks
from worker.engines.transformers.sampling.truncation import (
    SHORTLIST,
    Threshold,
    TruncationParams,
    sample,
    threshold_by_bisection,
    threshold_in_shortlist,
    threshold_in_top_k,
    to_weights,
    truncate,
)

_LOGITS_AT_ONCE = 1 << 18  # on a CPU: a megabyte stays in its caches
_MIN_TEMPERATURE = 1e-5  # below it a row is greedy: its logits would overflow

# full: from all tokens; nucleus: min-p or top-p alone; small_top_k: up to SHORTLIST
Method = Literal["greedy", "full", "nucleus", "small_top_k", "large_top_k"]


class RequestRNG:
    """One request's random numbers, one a token: a seed gives the same text in any batch."""

    def __init__(self, seed: int | None, skip: int = 0) -> None:
        """`skip`: tokens already sampled elsewhere, when a request is continued."""
        self._random = random.Random(seed)
        if seed is not None:
            for _ in range(skip):
                self._random.random()
        self.uniform = self._random.random()  # for the next token, in [0, 1)

    def advance(self) -> None:
        """The next token gets the next number."""
        self.uniform = self._random.random()


class _SlotState(msgspec.Struct):
    """How the sequence in a slot is sampled."""

    sampling: Sampling
    method: Method
    has_processors: bool  # biases or penalties change its logits
    log_min_p: float  # -inf: off
    rng: RequestRNG


class Sampler:
    """Samples up to `slots` sequences of a model with `vocabulary` tokens.

    On a GPU nothing here waits for the device: settings and random numbers are uploaded from pinned
    memory, and `SamplerOutput.wait` waits for the tokens. So one step's tokens can be sampled
    before those of the step before are read.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._states: list[_SlotState | None] = [None] * slots
        self._counts = TokenCounts(slots, vocabulary, device)
        self._biases = LogitBias(slots, device)
        self._masks = TokenMasks(slots, vocabulary, device)
        self._thresholds: dict[Method, Threshold] = {
            "nucleus": threshold_by_bisection,
            "small_top_k": threshold_in_top_k,
            "large_top_k": threshold_by_bisection,
        }
        if device.type == "cpu":
            self._thresholds["nucleus"] = threshold_in_shortlist

    def assign(
        self,
        slot: int,
        sampling: Sampling,
        prompt: list[int],
        answer: list[int],
        guide: Guide | None = None,
        ends: EndRule = NO_END_RULE,
    ) -> None:
        """A sequence takes `slot`. `answer`: its tokens so far, when it is continued.

        `guide`: at the end of `answer`; its masks are read here, but only the sequence advances it.
        """
        penalties = has_penalties(sampling)
        self._biases.assign(slot, sampling.logit_bias)
        self._masks.assign(slot, guide, ends, len(answer))
        if penalties:
            self._counts.assign(slot, prompt, answer)
        self._states[slot] = _SlotState(
            sampling=sampling,
            method=_method(sampling, self._vocabulary),
            has_processors=penalties or bool(sampling.logit_bias),
            log_min_p=_log_min_p(sampling.min_p),
            rng=RequestRNG(sampling.seed, skip=len(answer)),
        )

    def begin_masks(self, slots: Many[int]) -> None:
        """Starts to compute what the slots' grammars allow after the tokens known by now."""
        self._masks.begin(slots)

    def sample(self, logits: torch.Tensor, slots: list[int]) -> SamplerOutput:
        """The next tokens: row i of `logits` [rows, vocabulary] belongs to slots[i], all different.

        `logits` are not changed, nor is any slot's state before `advance` and `count`: if this
        raises, it can be called again, also for some of the rows. Raises LookupError for a slot
        without a sequence.
        """
        states = [self._state(slot) for slot in slots]
        self._masks.prepare(slots)
        marked = self._sample_all(logits, slots, states)
        return SamplerOutput(marked, self._logprobs(logits, marked, states))

    def advance(self, slot: int) -> None:
        """The slot's sequence has accepted its token."""
        state = self._state(slot)
        self._masks.advance(slot)
        if state.method != "greedy":
            state.rng.advance()

    def rows_with_processors(self, slots: list[int]) -> list[int]:
        """Which of `slots` have biases, penalties or masks, by their indices."""
        return [row for row, slot in enumerate(slots) if self._processed(slot)]

    def count(self, output: SamplerOutput, slots: list[int], rows: list[int]) -> None:
        """Adds the tokens of `rows` to the counts that penalties go by."""
        index = upload(rows, torch.int64, self._device)
        counted = upload([slots[row] for row in rows], torch.int64, self._device)
        self._counts.add(counted, output.tokens.index_select(0, index))

    def _state(self, slot: int) -> _SlotState:
        state = self._states[slot]
        if state is None:
            raise LookupError(f"slot {slot} has no sequence")
        return state

    def _processed(self, slot: int) -> bool:
        """Whether the slot's logits are changed before a token is chosen."""
        return self._state(slot).has_processors or self._masks.active(slot)

    # ---- tokens

    def _sample_all(
        self, logits: torch.Tensor, slots: list[int], states: list[_SlotState]
    ) -> torch.Tensor:
        """Each row's token or mark [rows]."""
        groups = self._groups(slots, states)
        if len(groups) == 1 and not self._few(slots[0], states[0]):
            return self._sample_rows(logits, slots, states)
        marked = torch.empty(len(slots), dtype=torch.int64, device=logits.device)
        for rows in groups:
            index = upload(rows, torch.int64, logits.device)
            group_slots = [slots[row] for row in rows]
            group_states = [states[row] for row in rows]
            if self._few(group_slots[0], group_states[0]):
                group_marked = self._sample_few(logits, index, group_slots, group_states)
            else:
                group_logits = logits.index_select(0, index)
                group_marked = self._sample_rows(
                    group_logits, group_slots, group_states, owned=True
                )
            marked.index_copy_(0, index, group_marked)
        return marked

    def _few(self, slot: int, state: _SlotState) -> bool:
        """Whether only the few tokens are looked at that the grammar allows."""
        return not state.has_processors and self._masks.few(slot)

    def _sample_few(
        self, logits: torch.Tensor, index: torch.Tensor, slots: list[int], states: list[_SlotState]
    ) -> torch.Tensor:
        """Tokens or marks of the rows `index`, the same as from logits with a mask."""
        ids, padding = self._masks.candidates(slots)
        candidates = logits[index[:, None], ids].float().masked_fill_(padding, float("-inf"))
        no_choice = _not_finite(candidates.amax(-1))  # before sampling overwrites them
        chosen = self._sample_by_method(candidates, states)
        tokens = ids.gather(-1, chosen[:, None])[:, 0].masked_fill_(no_choice, NO_CHOICE)
        greatest = torch.stack([logits[row].amax() for row in index.tolist()])  # without a copy
        return tokens.masked_fill_(_not_finite(greatest), NOT_FINITE)

    def _groups(self, slots: list[int], states: list[_SlotState]) -> list[list[int]]:
        """Rows that are sampled together: of one method, all with or all without processors, all
        or none among few tokens.
        """
        by_kind: dict[tuple[Method, bool, bool], list[int]] = {}
        for row, state in enumerate(states):
            kind = state.method, self._processed(slots[row]), self._few(slots[row], state)
            by_kind.setdefault(kind, []).append(row)
        groups: list[list[int]] = []
        for (method, has_processors, few), rows in by_kind.items():
            if method == "greedy" and not has_processors:
                groups.append(rows)  # one pass over the logits: parts would gain nothing
            else:
                groups += self._parts(rows, FEW if few else self._vocabulary)
        return groups

    def _parts(self, rows: list[int], width: int) -> list[list[int]]:
        """Rows to compute at once, of `width` tokens each.

        On a CPU no more than its caches hold: allocating larger tensors again and again takes
        longer than all the arithmetic.
        """
        if self._device.type != "cpu":
            return [rows]
        size = max(1, _LOGITS_AT_ONCE // width)
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _sample_rows(
        self,
        logits: torch.Tensor,
        slots: list[int],
        states: list[_SlotState],
        *,
        owned: bool = False,
    ) -> torch.Tensor:
        """Tokens or marks of rows with one method, all with or all without processors.

        `owned`: nobody else reads the logits, so they may be changed.
        """
        if self._processed(slots[0]):
            not_finite = _not_finite(logits.amax(-1))
            processed = logits.to(torch.float32, copy=not owned)
            self._process(processed, slots, states)
            no_choice = _not_finite(processed.amax(-1))  # before sampling overwrites them
            tokens = self._sample_by_method(processed, states)
            tokens.masked_fill_(no_choice, NO_CHOICE)
            return tokens.masked_fill_(not_finite, NOT_FINITE)
        tokens = self._sample_by_method(logits, states)
        if states[0].method == "greedy":  # the token's own logit is the maximum: no second pass
            greatest = logits.gather(-1, tokens[:, None])[:, 0]
        else:
            greatest = logits.amax(-1)
        return tokens.masked_fill_(_not_finite(greatest), NOT_FINITE)

    def _process(self, logits: torch.Tensor, slots: list[int], states: list[_SlotState]) -> None:
        """Changes float32 logits by masks, biases and penalties."""
        self._masks.apply(logits, slots)
        if any(state.has_processors for state in states):
            index = upload(slots, torch.int64, logits.device)
            self._biases.apply(logits, index)
            self._counts.penalise(logits, index, [state.sampling for state in states])

    def _sample_by_method(self, logits: torch.Tensor, states: list[_SlotState]) -> torch.Tensor:
        method = states[0].method
        if method == "greedy":
            return logits.argmax(dim=-1)
        temperatures: list[float] = []
        uniforms: list[float] = []
        log_min_ps: list[float] = []
        top_ps: list[float] = []
        top_ks: list[int] = []
        for state in states:
            temperatures.append(state.sampling.temperature)
            uniforms.append(state.rng.uniform)
            log_min_ps.append(state.log_min_p)
            top_ps.append(state.sampling.top_p)
            top_ks.append(state.sampling.top_k)
        # one upload for all of them, which is cheaper than five
        columns = [temperatures, uniforms, log_min_ps, top_ps, top_ks]
        uploaded = upload(columns, torch.float64, logits.device)
        temperature, uniform, log_min_p, top_p, top_k = uploaded[:, :, None]
        shifted, weights = to_weights(logits.float() / temperature.float())
        if method != "full":
            params = TruncationParams(min_shifted=log_min_p.float(), max_top_k=max(top_ks))
            if method != "nucleus":
                params.top_k = top_k.long()
            if min(top_ps) < 1:
                params.top_p = top_p
            threshold = self._thresholds[method](shifted, weights, params)
            weights = truncate(shifted, weights, threshold)
        return sample(weights, uniform)

    # ---- logprobs

    def _logprobs(
        self, logits: torch.Tensor, marked: torch.Tensor, states: list[_SlotState]
    ) -> list[Logprobs]:
        """Of the model's own distribution, before any setting is applied."""
        counts: dict[int, int] = {}
        for row, state in enumerate(states):
            if state.sampling.logprobs is not None:
                counts[row] = state.sampling.logprobs
        if not counts:
            return []
        tokens = marked.clamp(min=0)
        width = min(max(counts.values()), logits.shape[-1])
        blocks: list[Logprobs] = []
        for rows in self._parts(list(counts), self._vocabulary):
            index = upload(rows, torch.int64, logits.device)
            logprobs = logits.index_select(0, index).float().log_softmax(-1)
            sampled = logprobs.gather(-1, tokens.index_select(0, index)[:, None])[:, 0]
            top = logprobs.topk(width, dim=-1)
            block_counts = [counts[row] for row in rows]
            blocks.append(Logprobs(rows, block_counts, sampled, top.indices, top.values))
        return blocks


def _method(sampling: Sampling, vocabulary: int) -> Method:
    if sampling.temperature < _MIN_TEMPERATURE:
        return "greedy"
    if 0 < sampling.top_k < vocabulary:
        if sampling.top_k <= SHORTLIST:
            return "small_top_k"
        return "large_top_k"
    if sampling.top_p < 1 or sampling.min_p > 0:
        return "nucleus"
    return "full"


def _log_min_p(min_p: float) -> float:
    if min_p > 0:
        return math.log(min_p)
    return -math.inf


def _not_finite(greatest: torch.Tensor) -> torch.Tensor:
    """By the maximum of each row: which have NaN (the greatest), +inf, or -inf everywhere.

    The difference takes half the kernels of `isfinite`, and this runs in every step.
    """
    return (greatest - greatest) != 0
