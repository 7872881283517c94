"""How many sequences are computed at once, and how long each may be: what fits into the memory for
the KV cache. Pure: numbers in, numbers out.

A decoding step costs little more for many sequences than for few, so there are as many as fit.

With pages (`size_for_pages`), a sequence takes blocks as it grows, and may become as long as the
model's own context. Where each has a row of its own (`size_for_slots`), all have the same, fixed
context. Both keep one block or row more, where padding computes. More memory never gives fewer
slots or a shorter context.
"""

from collections.abc import Iterable
from typing import NamedTuple

BLOCK_SIZE = 16  # tokens: prompts share their beginnings to within so many
MAX_SLOTS = 1024  # beyond it arithmetic is the limit
_USUAL_LENGTH = 512  # tokens of a sequence, prompt and answer: so much room a slot should have
# Of a process on a GPU, beyond what torch reserves: the driver's context, libraries, graphs.
_UNCOUNTED_BYTES = 1 << 30
MIN_CONTEXT = 512  # tokens: less is of no use, unless it is the model's own


class CacheSize(NamedTuple):
    """`slots` sequences at once, of at most `context` tokens each, prompt included."""

    slots: int
    context: int
    blocks: int = 0  # of BLOCK_SIZE tokens, for all sequences; 0: each slot has its own row


class BlockSplit(NamedTuple):
    """Into how many blocks BLOCK_SIZE tokens go; see `block_groups`."""

    groups: int = 1  # of layers: a sequence has blocks of each
    per_token: float = 1.0  # blocks, as far as memory goes


ONE_GROUP = BlockSplit()


def size_for_pages(
    tokens: int,
    longest: int,
    slots: int | None,
    batch_sizes: Iterable[int],
    split: BlockSplit = ONE_GROUP,
) -> CacheSize | None:
    """Blocks for `tokens` tokens in all. `slots`: None: as many as will usually have room, out of
    `batch_sizes`. None if there is no room for a single useful sequence.
    """
    blocks = int(tokens // BLOCK_SIZE * split.per_token) - 1
    context = min(longest, blocks // split.groups * BLOCK_SIZE)
    if context < min(longest, MIN_CONTEXT):
        return None
    if slots is None:
        slots = max(1, _largest(tuple(batch_sizes), min(MAX_SLOTS, tokens // _USUAL_LENGTH)))
    return CacheSize(slots, context, min(blocks, slots * split.groups * blocks_for(context)))


def blocks_for(tokens: int) -> int:
    """How many blocks hold so many tokens."""
    return -(-tokens // BLOCK_SIZE)


def node_share(free: int, total: int, reserved: int, nodes: int) -> int:
    """Bytes that one of `nodes` nodes on a device may still take, having `reserved` already: the
    same share whichever starts first, and never more than is free.
    """
    return max(0, min(free, total // nodes - reserved))


def fraction_share(free: int, total: int, reserved: int, fraction: float) -> int:
    """Bytes that a node may still take of its `fraction` of a device, having `reserved` already:
    the same whatever other programs take, as long as they leave it that.
    """
    own = reserved + _UNCOUNTED_BYTES
    return max(0, min(free, int(total * fraction) - own))


def size_for_slots(tokens: int, longest: int, slots: int) -> CacheSize:
    """With that many slots, where `tokens` tokens fit: the model's own context (`longest`), or what
    there is room for.
    """
    return CacheSize(slots, max(1, min(longest, tokens // (slots + 1))))


def min_tokens(longest: int) -> int:
    """What `size_for_pages` needs at least."""
    return (blocks_for(min(longest, MIN_CONTEXT)) + 1) * BLOCK_SIZE


def _largest(batch_sizes: tuple[int, ...], most: int) -> int:
    return max((size for size in batch_sizes if size <= most), default=0)
