"""A loaded model, as the scheduler sees it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import torch

from worker.engines.transformers.model.rope import RopeLimit
from worker.engines.transformers.model.step import (
    NO_ROWS,
    BlockRange,
    DecodeRows,
    PrefillChunk,
    SharedPrefix,
)
from worker.engines.transformers.model.window import Window


class ModelRunner(Protocol):
    """Computes the tokens that a scheduler names, over a KV cache of blocks, or of a row for each
    slot; see LocalModelRunner. Whatever the model or the device raises comes through.

    `batch_invariant`: constant batch shape, so results are bit-identical whatever the batch size.
    """

    device: torch.device
    slots: int
    context: int
    blocks: int  # of cache_size.BLOCK_SIZE tokens; 0: each slot has its own row
    windows: tuple[Window, ...]  # of the groups of layers; see `block_groups`
    prefix_tile_rows: int  # for which a shared prefix is read once; 0: none is shared
    rope_limit: RopeLimit | None  # beyond it a sequence's keys differ

    @property
    def asynchronous(self) -> bool:
        """Steps are only queued on the device: their results are read later."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values in this process."""

    def copy_prefix(self, source: int, slot: int, tokens: int) -> None:
        """Copies the keys and values of the first `tokens` of slot `source` to `slot`."""

    def set_blocks(self, ranges: list[BlockRange]) -> None:
        """The sequences have these blocks from the next step on."""

    def share_prefixes(self, prefixes: list[SharedPrefix]) -> None:
        """From the next step on attention may read these once for all sequences that share them, as
        long as they decode. No slot is in two of them.
        """

    def feed(self, tokens: torch.Tensor) -> None:
        """Takes the tokens sampled from the latest logits [rows]."""

    def prefill(
        self,
        chunks: list[PrefillChunk],
        tokens: list[list[int]],
        ends_prompt: list[bool],
        rows: DecodeRows = NO_ROWS,
        *,
        batch_invariant: bool = False,
        every_token: bool = False,
        hidden: bool = False,
    ) -> torch.Tensor:
        """Computes chunks of prompts and, where the cache has blocks, the newest token of each of
        `rows`. Returns logits [rows + chunks that end a prompt, vocabulary], or with `every_token`,
        without rows, those of all tokens; `feed` still takes the tokens of the prompts that end.
        `hidden`: instead of logits the last hidden states of all tokens [tokens, features].
        """

    def decode(
        self, slots: Sequence[int], positions: Sequence[int], *, batch_invariant: bool = False
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
    prefill_tokens: int  # of prompts that a step computes at most
    step_seconds: dict[int, float] = {}  # of a GPU, by the tokens of prompts in a step
    runner: ModelRunner | None = None  # None: see `fallback`
    batched: bool = True  # without a runner: rows are computed together, else one by one
    precision: str = ""  # see quantization.py and gpu_precision.py; empty: as it was loaded
    # Ends the other processes that hold parts of it; False: this one cannot be used again either.
    close: Callable[[], bool] | None = None
