"""What changes a row's logits before anything is chosen: biases for single tokens, and penalties for what was said."""

from collections.abc import Mapping

import torch

from broker.wire import MOST_BIASES, Sampling

_PROMPT = 1 << 30  # marks the prompt's tokens, besides the count of the answer's


def upload(values: object, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers, or equally long lists of them, on the device; the host does not wait for them to get there."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(
        device, non_blocking=True
    )


def penalised(sampling: Sampling) -> bool:
    """Whether what was said changes what is said next."""
    return (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (
        1.0,
        0.0,
        0.0,
    )


class History:
    """Which tokens each slot's prompt has, and how often its answer has said each.

    Takes memory when the first sequence with a penalty comes, 4 bytes a slot and token: 131 MB for 256 slots of a
    vocabulary of 128,000. Without penalties nothing is counted.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._shape = (slots, vocabulary)
        self._device = device
        self._counts: torch.Tensor | None = None  # int32

    def begin(self, slot: int, prompt: list[int], answer: list[int]) -> None:
        """A sequence with a penalty takes the slot."""
        if self._counts is None:
            self._counts = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        counts = self._counts[slot]
        counts.zero_()
        if prompt:
            counts.index_fill_(0, upload(prompt, torch.int64, self._device), _PROMPT)
        if answer:
            said = upload(answer, torch.int64, self._device)
            counts.index_add_(0, said, torch.ones_like(said, dtype=torch.int32))

    def penalise(self, logits: torch.Tensor, slots: torch.Tensor, asked: list[Sampling]) -> None:
        """Changes float32 `logits` [rows, vocabulary] in place; row i belongs to slots[i]. A row without penalties
        stays as it is, to the last bit.
        """
        if self._counts is None or not any(map(penalised, asked)):
            return
        counts = self._counts.index_select(0, slots)
        if any(each.repetition_penalty != 1 for each in asked):
            penalty = self._column([each.repetition_penalty for each in asked])
            repeated = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits.copy_(torch.where(counts > 0, repeated, logits))
        said = counts.bitwise_and_(_PROMPT - 1)
        if any(each.frequency_penalty for each in asked):
            logits.sub_(said * self._column([each.frequency_penalty for each in asked]))
        if any(each.presence_penalty for each in asked):
            logits.sub_((said > 0) * self._column([each.presence_penalty for each in asked]))

    def _column(self, values: list[float]) -> torch.Tensor:
        return upload(values, torch.float32, self._device)[:, None]

    def add(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """Counts the chosen tokens, on the device; the host need not know them yet."""
        if self._counts is not None:
            places = slots * self._shape[1] + tokens
            self._counts.view(-1).index_add_(0, places, torch.ones_like(tokens, dtype=torch.int32))


class Biases:
    """What each slot's sequence adds to the logits of up to MOST_BIASES tokens."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._shape = (slots, MOST_BIASES)
        self._device = device
        self._ids: torch.Tensor | None = None  # int64; what is not used adds 0 to token 0
        self._values: torch.Tensor | None = None  # float32

    def begin(self, slot: int, biases: Mapping[int, float]) -> None:
        """A sequence takes the slot."""
        if self._ids is None or self._values is None:
            if not biases:
                return
            self._ids = torch.zeros(self._shape, dtype=torch.int64, device=self._device)
            self._values = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
        unused = MOST_BIASES - len(biases)
        self._ids[slot] = upload([*biases, *[0] * unused], torch.int64, self._device)
        self._values[slot] = upload(
            [*biases.values(), *[0.0] * unused], torch.float32, self._device
        )

    def add(self, logits: torch.Tensor, slots: torch.Tensor) -> None:
        """Changes float32 `logits` [rows, vocabulary] in place; row i belongs to slots[i]."""
        if self._ids is not None and self._values is not None:
            logits.scatter_add_(
                1, self._ids.index_select(0, slots), self._values.index_select(0, slots)
            )
