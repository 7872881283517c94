"""A model in memory, as those who compute with it see it."""

from typing import Any

import msgspec

from worker.engines.slotmodel import SlotModel


class Loaded(msgspec.Struct, frozen=True):
    """A model ready to compute."""

    model: Any
    tokenizer: Any
    ends: frozenset[int]  # token ids that end an answer
    context: int  # tokens, prompt and answer together
    vocabulary: int  # token ids are below it
    prefill_tokens: int  # how much of a prompt is read between two steps of those who run
    over: SlotModel | None = None  # the model over slots; None: it is computed the library's way
