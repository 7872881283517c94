"""Which tokens of a row may be drawn, and the draw.

Weights are whole numbers: WHOLE for the likeliest token, the others in proportion. A sum of whole numbers is the same
in whatever order a device adds them up, so neither a draw nor a nucleus depends on how many rows are computed together.
A token less than a billionth as likely as the likeliest has weight 0.

min-p, top-k and top-p each keep the tokens from some logit upwards, so together they are one threshold a row. Tokens
that are equally likely are kept or dropped together: top-k may keep more than k, top-p more than the fewest.
Everything here is [rows, ...], and a row's result depends on that row alone.
"""

from collections.abc import Callable

import msgspec
import torch

SHORTLIST = 1024  # most nuclei are found among so many; finding the best of them is cheap
WHOLE = 2.0**30
_BLOCK = 512  # tokens whose weights are added up before one of them is looked for
_DEEPEST = -21.0  # what is so far below the greatest logit has no weight
_HALVINGS = 24  # they tell logits apart that differ by more than 21 / 2**24: about what float32 itself can tell apart


class Limits(msgspec.Struct, frozen=True):
    """What each row keeps; tensors [rows, 1] on the device, None where no row asks."""

    floor: torch.Tensor  # how far below the greatest logit: the logarithm of min-p; -inf: off
    top_k: torch.Tensor | None  # int64; all rows have one, or none has
    top_p: torch.Tensor | None  # float64; from 1 up: off
    most_k: int = 0  # the greatest of top_k


def weigh(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each logit lies below its row's greatest (0 or less), and its weight (int32). `logits`, which must be
    float32, become the former.
    """
    depths = logits.sub_(logits.amax(-1, keepdim=True))
    return depths, depths.exp().mul_(WHOLE).int()


def draw(weights: torch.Tensor, dice: torch.Tensor) -> torch.Tensor:
    """Index per row, with probability in proportion to its weight. `dice` [rows, 1]: float64 in [0, 1).

    The dice point at a place in the sum of all weights, in the order of the tokens. First the block that holds it is
    found, then the token: running sums over whole rows would be most of the work.
    """
    heaps = _block_sums(weights).cumsum(-1)
    total = heaps[:, -1:]
    aims = torch.minimum((dice * total).long(), total - 1)
    block = torch.searchsorted(heaps, aims, right=True).clamp_(max=heaps.shape[-1] - 1)
    before = torch.where(block > 0, heaps.gather(-1, (block - 1).clamp_(min=0)), 0)
    last = weights.shape[-1] - 1
    tokens = block * _BLOCK + torch.arange(min(_BLOCK, last + 1), device=weights.device)
    inside = weights.gather(-1, tokens.clamp(max=last)).cumsum(-1, dtype=torch.int64)
    found = torch.searchsorted(inside, aims - before, right=True)
    return (block * _BLOCK + found)[:, 0].clamp_(max=last)


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """The sums of _BLOCK weights each [rows, blocks]; the last block may be shorter."""
    whole = weights.shape[-1] // _BLOCK * _BLOCK
    blocks = weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1, dtype=torch.int64)
    return torch.cat([blocks, weights[:, whole:].sum(-1, keepdim=True, dtype=torch.int64)], dim=-1)


def kept(depths: torch.Tensor, weights: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """The weights of the tokens from `threshold` [rows, 1] up; 0 for the others."""
    return weights * (depths >= threshold)


def within_top_k(depths: torch.Tensor, weights: torch.Tensor, limits: Limits) -> torch.Tensor:
    """The least depth that each row keeps [rows, 1], for rows with a top-k of moderate size."""
    return _ranked(depths, weights, limits, limits.most_k)[0]


def by_shortlist(depths: torch.Tensor, weights: torch.Tensor, limits: Limits) -> torch.Tensor:
    """The same for rows without top-k, where the host may look at what came out: few rows need more than a list."""
    found, missed = _ranked(depths, weights, limits, SHORTLIST)
    rows = missed[:, 0].nonzero()[:, 0]
    if len(rows):
        rest = Limits(
            limits.floor[rows], None, None if limits.top_p is None else limits.top_p[rows]
        )
        found[rows] = by_halving(depths[rows], weights[rows], rest)
    return found


def by_halving(depths: torch.Tensor, weights: torch.Tensor, limits: Limits) -> torch.Tensor:
    """The same for any rows, without sorting and without the host, by looking at the whole of them again and again."""
    floor, top_k = limits.floor, limits.top_k
    if top_k is not None:
        kth = _highest(
            lambda edge: (depths >= edge).sum(-1, keepdim=True) >= top_k,
            torch.full_like(floor, _DEEPEST),
        )
        floor = torch.maximum(floor, kth)
    if limits.top_p is None:
        return floor
    need = _need(depths, weights, floor, limits.top_p)
    found = _highest(lambda edge: _mass(depths, weights, edge) >= need, floor.clamp(min=_DEEPEST))
    return torch.where(limits.top_p < 1, found, floor)


def _ranked(
    depths: torch.Tensor, weights: torch.Tensor, limits: Limits, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The thresholds as far as the `width` best tokens tell them, and in which rows they do not."""
    best, order = depths.topk(min(width, depths.shape[-1]), dim=-1)
    floor = limits.floor
    if limits.top_k is not None:
        floor = torch.maximum(floor, best.gather(-1, limits.top_k - 1))
    if limits.top_p is None:
        return floor, torch.zeros_like(floor, dtype=torch.bool)
    heaps = weights.gather(-1, order).masked_fill(best < floor, 0).cumsum(-1, dtype=torch.int64)
    before = (heaps < _need(depths, weights, floor, limits.top_p)).sum(
        -1, keepdim=True
    )  # tokens that are not enough
    inside = before < best.shape[-1]
    found = torch.where(
        limits.top_p < 1, best.gather(-1, before.clamp(max=best.shape[-1] - 1)), floor
    )
    return found, ~inside & (limits.top_p < 1)


def _need(
    depths: torch.Tensor, weights: torch.Tensor, floor: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """The weight that the nucleus must reach: top-p's part of what min-p and top-k have left."""
    return (top_p * _mass(depths, weights, floor)).ceil().clamp(min=1).long()


def _mass(depths: torch.Tensor, weights: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    return kept(depths, weights, edge).sum(-1, keepdim=True, dtype=torch.int64)


def _highest(enough: Callable[[torch.Tensor], torch.Tensor], low: torch.Tensor) -> torch.Tensor:
    """The highest edge that still leaves enough, by halving between `low`, which does or is returned, and 0."""
    high = torch.zeros_like(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        good = enough(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return low
