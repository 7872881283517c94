"""How many sequences are computed at once, and how long each may be: what fits into the memory for
the KV cache. Pure: numbers in, numbers out.

A decoding step costs little more for many sequences than for few, so there are as many slots as fit
with a context that people can work with. All slots have the same, fixed context, and there is one
row more than slots, where padding computes. More memory never gives fewer slots or a shorter
context.
"""

from collections.abc import Iterable
from typing import NamedTuple

MAX_SLOTS = 256  # beyond it arithmetic is the limit
MIN_SLOTS = 8  # to have so many, contexts are shortened
USUAL_CONTEXT = 8192  # tokens
SHORT_CONTEXT = 2048  # where the usual one leaves fewer than MIN_SLOTS
MIN_CONTEXT = 512
_MULTIPLE = 256  # of contexts: the same after a restart, though a few bytes more are taken by then


class CacheSize(NamedTuple):
    """`slots` sequences at once, of at most `context` tokens each, prompt included."""

    slots: int
    context: int


def node_share(free: int, total: int, reserved: int, nodes: int) -> int:
    """Bytes that one of `nodes` nodes on a device may still take, having `reserved` already: the
    same share whichever starts first, and never more than is free.
    """
    return max(0, min(free, total // nodes - reserved))


def size_for_slots(tokens: int, longest: int, slots: int) -> CacheSize:
    """With that many slots, where `tokens` tokens fit: the model's own context (`longest`), or what
    there is room for.
    """
    return CacheSize(slots, max(1, min(longest, tokens // (slots + 1))))


def choose_size(tokens: int, longest: int, batch_sizes: Iterable[int]) -> CacheSize | None:
    """As many slots as is sensible, out of `batch_sizes`; None if there is no room for a single
    useful sequence.
    """
    batch_sizes = tuple(batch_sizes)
    usual = min(longest, USUAL_CONTEXT)
    short = min(longest, SHORT_CONTEXT)
    slots = _largest(batch_sizes, min(MAX_SLOTS, tokens // usual - 1))
    context = longest if slots == MAX_SLOTS else usual
    if slots < MIN_SLOTS:
        slots = max(1, _largest(batch_sizes, min(MIN_SLOTS, tokens // short - 1)))
        context = usual if slots >= MIN_SLOTS else short
    room = tokens // (slots + 1)
    if room < context:
        context = room // _MULTIPLE * _MULTIPLE
    return CacheSize(slots, context) if context >= min(longest, MIN_CONTEXT) else None


def min_tokens(longest: int) -> int:
    """What `choose_size` needs at least, for one slot."""
    return 2 * min(longest, MIN_CONTEXT)


def _largest(batch_sizes: tuple[int, ...], most: int) -> int:
    return max((size for size in batch_sizes if size <= most), default=0)
