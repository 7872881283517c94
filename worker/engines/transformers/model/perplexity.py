"""What a number format costs a model: it reads a paragraph of plain English in both."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARAGRAPH = (
    "The old harbour had been quiet for years before the ferries came back. On the first morning "
    "a small crowd stood on the pier, some with coffee, some with cameras, and watched the white "
    "ship turn slowly towards the town. Nobody knew whether enough people would pay for the "
    "crossing, but the baker had already hired two more hands."
)


def perplexity_loss(exact: torch.Tensor, rounded: torch.Tensor) -> float:
    """By how much, relatively, the perplexity gets worse with `rounded` logits [tokens, vocabulary]
    instead of `exact` ones: the mean KL divergence is how many more nats a text of the exact model
    costs.
    """
    p, q = exact.float().log_softmax(-1), rounded.float().log_softmax(-1)
    nats = float((p.exp() * (p - q)).sum(-1).mean())
    if math.isnan(nats):
        return math.inf
    return math.expm1(min(50.0, nats))


@contextmanager
def attention_of(model: Any, name: str) -> Iterator[None]:
    """`model` uses the attention function of that name meanwhile."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
