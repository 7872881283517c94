"""How many answers are computed at once, and how long each may be: what fits into the memory for keys and values.
Pure: numbers in, numbers out.

A decoding step costs little more for many answers than for few, so there are as many slots as fit with a context that
people can work with. Each slot has the same, fixed context, and there is one row more than slots: a recorded step pads
there. More memory never gives fewer slots, nor a shorter context.
"""

from collections.abc import Iterable
from typing import NamedTuple

MOST, FEW = 256, 8  # slots: beyond MOST arithmetic is the limit; for FEW rows are shortened
LONG, SHORT, LEAST = (
    8192,
    2048,
    512,
)  # tokens of a row: by itself; shortened, to have FEW slots; at the very least
_WHOLE = 256  # contexts are multiples of it: the same after a restart, though a few bytes more are taken by then


class Size(NamedTuple):
    """`slots` answers at once, of at most `context` tokens each, prompt included."""

    slots: int
    context: int


def part(free: int, total: int, held: int, nodes: int) -> int:
    """Bytes that one of `nodes` nodes on a device may still take, of which it holds `held` already: the same for all
    of them, whoever comes first, and never more than is free.
    """
    return max(0, min(free, total // nodes - held))


def fixed(tokens: int, longest: int, slots: int) -> Size:
    """With so many slots, where `tokens` tokens fit: the model's own context (`longest`), or what there is room for."""
    return Size(slots, max(1, min(longest, tokens // (slots + 1))))


def chosen(tokens: int, longest: int, sizes: Iterable[int]) -> Size | None:
    """With as many slots as is sensible, out of `sizes`; None if not even one useful answer has room."""
    sizes = tuple(sizes)
    row, short, least = (min(longest, each) for each in (LONG, SHORT, LEAST))
    slots = _largest(sizes, min(MOST, tokens // row - 1))
    if slots < FEW:
        slots = max(1, _largest(sizes, min(FEW, tokens // short - 1)))
    wanted = longest if slots == MOST else row if slots >= FEW else short
    room = tokens // (slots + 1)
    context = wanted if room >= wanted else room // _WHOLE * _WHOLE
    return Size(slots, context) if context >= least else None


def least_tokens(longest: int) -> int:
    """What `chosen` wants at least, for one slot."""
    return 2 * min(longest, LEAST)


def _largest(sizes: tuple[int, ...], most: int) -> int:
    return max((size for size in sizes if size <= most), default=0)
