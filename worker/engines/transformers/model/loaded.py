"""A loaded model, as the scheduler sees it."""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import torch

from worker.engines.transformers.model.rope import RopeLimit
from worker.engines.transformers.model.step import PrefillChunk


class ModelRunner(Protocol):
    """Computes the tokens that a scheduler names, over a KV cache of fixed slots; see
    LocalModelRunner. Whatever the model or the device raises comes through.

    `batch_invariant`: constant batch shape, so results are bit-identical whatever the batch size.
    """

    device: torch.device
    slots: int
    context: int
    rope_limit: RopeLimit | None  # beyond it a sequence's keys differ

    @property
    def asynchronous(self) -> bool:
        """Steps are only queued on the device: their results are read later."""

    def copy_prefix(self, source: int, slot: int, tokens: int) -> None:
        """Copies the keys and values of the first `tokens` of slot `source` to `slot`."""

    def feed(self, tokens: torch.Tensor) -> None:
        """Takes the tokens sampled from the latest logits [rows]."""

    def prefill(
        self,
        chunks: list[PrefillChunk],
        tokens: list[list[int]],
        ends_prompt: list[bool],
        *,
        batch_invariant: bool = False,
    ) -> torch.Tensor:
        """Computes chunks of prompts. Returns logits [chunks that end a prompt, vocabulary]."""

    def decode(
        self, slots: list[int], positions: list[int], *, batch_invariant: bool = False
    ) -> torch.Tensor:
        """Computes the newest token of each slot. Returns logits [rows, vocabulary]."""

    def check(self) -> None:
        """Raises EngineError if what has been read from the device is not right."""


class LoadedModel(msgspec.Struct, frozen=True):
    """A model ready to compute."""

    model: Any
    tokenizer: Any
    eos_token_ids: frozenset[int]  # each ends an answer
    slots: int  # sequences at once
    context: int  # tokens, prompt and answer together
    vocabulary: int  # token ids are below it
    prefill_tokens: int  # of prompts between two decoding steps
    runner: ModelRunner | None = None  # None: see `fallback`
    batched: bool = True  # without a runner: rows are computed together, else one by one
    precision: str = ""  # of a CPU; see quantization.py
    # Ends the other processes that hold parts of it; False: this one cannot be used again either.
    close: Callable[[], bool] | None = None
