"""Which tokens each slot's sequence may have next: by its grammar, and none that ends it too early.

The masks of grammars are computed by llguidance's own threads, on behalf of a thread that waits for
them while the decoding thread computes the next step: `begin` once the tokens of a step are known,
`prepare` where their successors are sampled. They have a bit a token. A GPU expands them; for a CPU
they become lists of tokens.
"""

import os
import time
from collections.abc import Sequence as Many
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import torch
from llguidance import LLExecutor

from worker.engines.base import EngineFailed
from worker.engines.transformers.guidance.guide import Guide, next_mask
from worker.engines.transformers.sampling.penalties import upload
from worker.engines.transformers.sampling.token_lists import TokenList, TokenLists, padded

MASK_SECONDS = 30.0  # the limits of the grammars end a step's masks long before
SLOW_SECONDS = 0.25  # of one mask: everybody's tokens wait for it
_MAX_THREADS = 8
_WORD = 32  # tokens


class EndRule(msgspec.Struct, frozen=True):
    """Tokens that end an answer, and how many others must come before them."""

    tokens: tuple[int, ...] = ()
    min_tokens: int = 0


NO_END_RULE = EndRule()


class _SlotMask(msgspec.Struct):
    """`answered`: tokens of the answer that are sampled, known to the host or not."""

    guide: Guide | None
    ends: EndRule
    answered: int
    version: int = -1  # of the guide, whose mask is in the slot's row
    tokens: TokenList | None = None  # of the mask, on a CPU

    @property
    def keeps_on(self) -> bool:
        """Whether the next token must not be an end."""
        return self.answered < self.ends.min_tokens


class TokenMasks:
    """Without grammars and least lengths nothing is allocated, and no thread starts."""

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._slots: list[_SlotMask | None] = [None] * slots
        self._masks: torch.Tensor | None = None  # [slots, words], int32, on the host
        self._executor: LLExecutor | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._computing: Future[None] | None = None
        self._suspects: set[int] = set()  # slots whose last masks took too long together
        self._shifts: torch.Tensor | None = None  # the bits of a byte, on the device
        self._lists = TokenLists(vocabulary) if device.type == "cpu" else None

    def assign(self, slot: int, guide: Guide | None, ends: EndRule, answered: int) -> None:
        """A sequence takes the slot."""
        self._wait()
        self._slots[slot] = None
        self._suspects.discard(slot)
        if guide is not None or ends.min_tokens > answered:
            self._slots[slot] = _SlotMask(guide, ends, answered)
        if guide is not None and self._masks is None:
            words = -(-self._vocabulary // _WORD)
            self._masks = torch.zeros(len(self._slots), max(words, guide.words), dtype=torch.int32)

    def active(self, slot: int) -> bool:
        """Whether the slot's next token is not free."""
        state = self._slots[slot]
        return state is not None and (state.guide is not None or state.keeps_on)

    def advance(self, slot: int) -> None:
        """A token was sampled for the slot."""
        state = self._slots[slot]
        if state is not None:
            state.answered += 1

    def begin(self, slots: Many[int]) -> None:
        """Starts to compute the masks that follow the tokens known now."""
        self._wait()
        outdated = self._outdated(slots)
        if outdated:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
            self._computing = self._thread.submit(self._compute, outdated)

    def prepare(self, slots: list[int]) -> None:
        """Has the slots' masks ready, before tokens are sampled for them.

        Raises InvalidRequest if one of them cannot keep its grammar any longer.
        """
        guided: list[int] = []
        for slot in slots:
            state = self._slots[slot]
            if state is not None and state.guide is not None:
                guided.append(slot)
        if not guided:
            return
        self._wait()
        self._compute(self._outdated(guided))
        for slot in guided:
            self._prepare(slot)

    def few(self, slot: int) -> bool:
        """Whether the slot's next token is best sampled among its `candidates`."""
        state = self._slots[slot]
        return state is not None and state.tokens is not None and state.tokens.few

    def candidates(self, slots: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The only tokens that slots with few may have next [rows, the most], ascending, and where
        that is nothing but padding.
        """
        return padded([self._tokens(slot) for slot in slots])

    def apply(self, logits: torch.Tensor, slots: list[int]) -> None:
        """Sets float32 `logits` [rows, vocabulary] to -inf where a token may not come next.

        Row i belongs to slots[i], for which `prepare` was called.
        """
        guided: list[int] = []
        keeping_on: list[int] = []
        for row, slot in enumerate(slots):
            state = self._slots[slot]
            if state is not None and state.guide is not None:
                guided.append(row)
            elif state is not None and state.keeps_on:
                keeping_on.append(row)
        if guided:
            self._apply_grammars(logits, slots, guided)
        if keeping_on:
            self._forbid_ends(logits, slots, keeping_on)

    # ---- grammars

    def _prepare(self, slot: int) -> None:
        state = self._slots[slot]
        if state is not None and state.guide is not None:
            state.guide.check()
            if self._lists is not None:
                state.tokens = self._lists.of(self._host_masks([slot])[0])

    def _tokens(self, slot: int) -> TokenList:
        state = self._slots[slot]
        if state is None or state.tokens is None:
            raise LookupError(f"slot {slot} has no list of tokens")
        return state.tokens

    def _apply_grammars(self, logits: torch.Tensor, slots: list[int], rows: list[int]) -> None:
        if self._lists is not None:
            for row in rows:
                self._tokens(slots[row]).apply(logits[row])
            return
        allowed = self._expand(self._host_masks([slots[row] for row in rows]))
        forbidden = allowed[:, : logits.shape[-1]] == 0
        if len(rows) == len(slots):
            logits.masked_fill_(forbidden, float("-inf"))
            return
        index = upload(rows, torch.int64, logits.device)
        part = logits.index_select(0, index).masked_fill_(forbidden, float("-inf"))
        logits.index_copy_(0, index, part)

    def _outdated(self, slots: Many[int]) -> list[int]:
        """Slots whose row does not hold the mask after the guide's newest token."""
        outdated: list[int] = []
        for slot in slots:
            state = self._slots[slot]
            if state is None or state.guide is None or state.guide.complete:
                continue
            if state.version != state.guide.version:
                outdated.append(slot)
        return outdated

    def _compute(self, slots: list[int]) -> None:
        """Fills the rows of the slots, in parallel."""
        masks = self._masks
        if not slots or masks is None:
            return
        if self._executor is None:
            self._executor = LLExecutor(_threads())
        waiting: list[tuple[_SlotMask, Guide, int]] = []
        for slot in slots:
            state = self._slots[slot]
            if state is None or state.guide is None:
                continue
            if state.guide.version == 0:
                masks[slot] = state.guide.first_mask
                state.version = 0
            else:
                waiting.append((state, state.guide, slot))
        guides = {slot: guide for _, guide, slot in waiting}
        self._compute_suspects(masks, guides)
        self._compute_together(masks, guides, self._executor)
        for state, guide, _ in waiting:
            if not guide.failed:
                state.version = guide.version

    def _compute_together(
        self, masks: torch.Tensor, guides: dict[int, Guide], executor: LLExecutor
    ) -> None:
        """In parallel. The library does not tell how long each takes: if that was long, each is
        measured in its next step.
        """
        if not guides:
            return
        began = time.monotonic()
        matchers = [(guide.matcher, slot) for slot, guide in guides.items()]
        row_bytes = masks.shape[1] * masks.element_size()
        executor.unsafe_compute_mask_ptr(matchers, masks.data_ptr(), row_bytes, len(masks))
        if time.monotonic() - began > SLOW_SECONDS:
            self._suspects.update(guides)

    def _compute_suspects(self, masks: torch.Tensor, guides: dict[int, Guide]) -> None:
        """One after the other, by this thread's processor time; takes them out of `guides`."""
        for slot in self._suspects & guides.keys():
            guide = guides.pop(slot)
            began = time.thread_time()
            next_mask(guide.matcher, masks[slot])
            guide.too_slow = time.thread_time() - began > SLOW_SECONDS
            self._suspects.discard(slot)

    def _host_masks(self, slots: list[int]) -> torch.Tensor:
        """A copy of the rows, pinned where there is a GPU: the next ones may overwrite them."""
        if self._masks is None:
            raise RuntimeError("no sequence with a grammar was assigned")
        rows = self._masks[slots]
        for row, slot in enumerate(slots):
            state = self._slots[slot]
            if state is not None and state.keeps_on:
                _without(rows[row], state.ends.tokens)
        if self._device.type == "cuda":
            rows = rows.pin_memory()
        return rows

    def _expand(self, masks: torch.Tensor) -> torch.Tensor:
        """A byte a token, 0 for those that are not allowed."""
        if self._shifts is None:
            bits = [1 << bit for bit in range(8)]
            self._shifts = torch.tensor(bits, dtype=torch.uint8, device=self._device)
        on_device = masks.to(self._device, non_blocking=True).view(torch.uint8)
        return on_device[:, :, None].bitwise_and(self._shifts).flatten(1)

    def _wait(self) -> None:
        """For the masks that `begin` has started."""
        computing, self._computing = self._computing, None
        if computing is None:
            return
        try:
            computing.result(MASK_SECONDS)
        except TimeoutError as error:
            raise EngineFailed("the masks of grammars take too long") from error

    # ---- least lengths

    def _forbid_ends(self, logits: torch.Tensor, slots: list[int], rows: list[int]) -> None:
        at_rows: list[int] = []
        at_tokens: list[int] = []
        for row in rows:
            state = self._slots[slots[row]]
            if state is not None:
                at_rows += [row] * len(state.ends.tokens)
                at_tokens += state.ends.tokens
        if at_rows:
            index = upload([at_rows, at_tokens], torch.int64, logits.device)
            forbidden = torch.full((), float("-inf"), device=logits.device)
            logits.index_put_((index[0], index[1]), forbidden)


def _without(mask: torch.Tensor, tokens: tuple[int, ...]) -> None:
    """Forbids the tokens in one row, unless nothing else is allowed: a grammar is never broken."""
    rest = mask.clone()
    for token in tokens:
        word, bit = divmod(token, _WORD)
        rest[word] &= ~(1 << bit) if bit < _WORD - 1 else (1 << bit) - 1
    if rest.any():
        mask.copy_(rest)


def _threads() -> int:
    """On few cores a second one would only take them from the model."""
    return max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 4))
