"""Logits processors: biases for single tokens, and penalties for tokens that occurred before."""

from collections.abc import Mapping

import torch

from broker.wire import MAX_BIASES, Sampling

_IN_PROMPT = 1 << 30  # the bit that marks a prompt's tokens, above the count in the answer


def upload(values: object, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers, or equally long lists of them, on the device; the host does not wait for it."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def has_penalties(sampling: Sampling) -> bool:
    """Whether earlier tokens change what comes next."""
    return (
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )


class TokenCounts:
    """How often each token occurs in each slot's answer, and which tokens its prompt has.

    Allocated with the first sequence that has a penalty: 4 bytes a slot and token, 131 MB for 256
    slots and a vocabulary of 128,000, 0.5 GB for 1,024.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._shape = (slots, vocabulary)
        self._device = device
        self._counts: torch.Tensor | None = None  # int32

    def assign(self, slot: int, prompt: list[int], answer: list[int]) -> None:
        """A sequence with a penalty takes the slot. `answer`: its tokens so far."""
        if self._counts is None:
            self._counts = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        counts = self._counts[slot]
        counts.zero_()
        if prompt:
            counts.index_fill_(0, upload(prompt, torch.int64, self._device), _IN_PROMPT)
        if answer:
            tokens = upload(answer, torch.int64, self._device)
            counts.index_add_(0, tokens, torch.ones_like(tokens, dtype=torch.int32))

    def penalise(self, logits: torch.Tensor, slots: torch.Tensor, settings: list[Sampling]) -> None:
        """Changes float32 `logits` [rows, vocabulary] in place; row i belongs to slots[i].

        A row without penalties keeps its logits to the last bit.
        """
        if self._counts is None or not any(map(has_penalties, settings)):
            return
        counts = self._counts.index_select(0, slots)
        repetition = [sampling.repetition_penalty for sampling in settings]
        if any(penalty != 1 for penalty in repetition):
            penalties = self._column(repetition)
            repeated = torch.where(logits > 0, logits / penalties, logits * penalties)
            logits.copy_(torch.where(counts > 0, repeated, logits))
        occurrences = counts.bitwise_and_(_IN_PROMPT - 1)
        frequency = [sampling.frequency_penalty for sampling in settings]
        if any(frequency):
            logits.sub_(occurrences * self._column(frequency))
        presence = [sampling.presence_penalty for sampling in settings]
        if any(presence):
            logits.sub_((occurrences > 0) * self._column(presence))

    def add(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """Counts the sampled tokens on the device; the host need not know them yet."""
        if self._counts is not None:
            cells = slots * self._shape[1] + tokens
            self._counts.view(-1).index_add_(0, cells, torch.ones_like(tokens, dtype=torch.int32))

    def _column(self, values: list[float]) -> torch.Tensor:
        return upload(values, torch.float32, self._device)[:, None]


class LogitBias:
    """What each slot's sequence adds to the logits of up to MAX_BIASES tokens."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._shape = (slots, MAX_BIASES)
        self._device = device
        self._ids: torch.Tensor | None = None  # int64; unused entries add 0 to token 0
        self._values: torch.Tensor | None = None  # float32

    def assign(self, slot: int, biases: Mapping[int, float]) -> None:
        """A sequence takes the slot."""
        if self._ids is None or self._values is None:
            if not biases:
                return
            self._ids = torch.zeros(self._shape, dtype=torch.int64, device=self._device)
            self._values = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
        unused = MAX_BIASES - len(biases)
        ids = list(biases) + [0] * unused
        values = list(biases.values()) + [0.0] * unused
        self._ids[slot] = upload(ids, torch.int64, self._device)
        self._values[slot] = upload(values, torch.float32, self._device)

    def apply(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """Changes float32 `logits` [rows, vocabulary] in place; row i belongs to slots[i]."""
        if self._ids is not None and self._values is not None:
            ids = self._ids.index_select(0, slots)
            logits.scatter_add_(1, ids, self._values.index_select(0, slots))
