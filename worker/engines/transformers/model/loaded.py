"""A model in memory, as those who compute with it see it."""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import torch

from worker.engines.transformers.model.attention import Piece
from worker.engines.transformers.model.rope import LengthLimit


class OverSlots(Protocol):
    """A model over slots: see SlotModel, which computes it in this process. What fails raises.

    `fixed`: in a shape that does not depend on how many are computed, so that nobody's numbers do, to the last bit.
    """

    device: torch.device
    slots: int
    context: int
    limit: LengthLimit | None  # beyond it a sequence's keys are others

    @property
    def device_ahead(self) -> bool:
        """Steps are only queued: what they made is read later."""

    def copy(self, source: int, slot: int, tokens: int) -> None:
        """The first `tokens` of `source` are also in `slot`."""

    def feed(self, tokens: torch.Tensor) -> None:
        """What was chosen from the latest logits [rows]."""

    def prefill(
        self, pieces: list[Piece], tokens: list[list[int]], ends: list[bool], *, fixed: bool = False
    ) -> torch.Tensor:
        """Logits [wanted, vocabulary] after those pieces of prompts that end one."""

    def decode(
        self, slots: list[int], positions: list[int], *, fixed: bool = False
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] after the newest token of each slot."""

    def check(self) -> None:
        """Raises EngineError if what has been read from the device is not right."""


class Loaded(msgspec.Struct, frozen=True):
    """A model ready to compute."""

    model: Any
    tokenizer: Any
    eos_token_ids: frozenset[int]
    slots: int  # sequences at once
    context: int  # tokens, prompt and answer together
    vocabulary: int  # token ids are below it
    prefill_tokens: int  # how much of a prompt is read between two steps of those who run
    over: OverSlots | None = None  # the model over slots; None: it is computed the library's way
    alone: bool = False  # and there each sequence by itself: its cache cannot be batched, see fallback/one_by_one.py
    precision: str = ""  # the numbers that a CPU computes in; see quantization.py
    # Ends the other processes that hold parts of it; False: this one cannot be used again either.
    close: Callable[[], bool] | None = None
