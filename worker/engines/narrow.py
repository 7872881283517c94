"""Which tokens of a row may be drawn, and the draw.

Weights are whole numbers: WHOLE for the likeliest token, the others in proportion. A sum of whole numbers is the same
in whatever order a device adds them up, so neither a draw nor a nucleus depends on how many rows are computed together.
A token less than half a billionth as likely as the likeliest has weight 0.

min-p, top-k and top-p each keep the tokens from some logit upwards, so together they are one threshold a row. Tokens
that are equally likely are kept or dropped together: top-k may keep more than k, top-p more than the fewest.
Everything here is [rows, ...], and a row's result depends on that row alone.
"""

from collections.abc import Callable

import msgspec
import torch

SHORTLIST = 1024  # on a CPU, most nuclei are found among so many; finding the best of them costs one look at the row
WHOLE = 2.0**30
_DEEPEST = -22.0  # what is so far below the greatest logit has no weight
_HALVINGS = 24  # they tell logits apart that differ by more than 22 / 2**24: about what float32 itself can tell apart


class Limits(msgspec.Struct, frozen=True):
    """What each row keeps; tensors [rows, 1] on the device. The host knows the greatest top-k, and if top-p is on."""

    floor: torch.Tensor  # how far below the greatest logit: the logarithm of min-p; -inf: off
    top_k: torch.Tensor  # int64; 0: off
    top_p: torch.Tensor  # float64; from 1 up: off
    most_k: int
    any_p: bool


def weigh(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each logit lies below its row's greatest (float32, 0 or less), and its weight (int32)."""
    depths = logits - logits.amax(-1, keepdim=True)
    return depths, depths.exp().mul_(WHOLE).round_().int()


def draw(weights: torch.Tensor, dice: torch.Tensor) -> torch.Tensor:
    """Index per row, with probability in proportion to its weight. `dice`: float64 in [0, 1), one a row."""
    heaps = weights.cumsum(-1, dtype=torch.int64)
    total = heaps[:, -1:]
    aims = torch.minimum((dice[:, None] * total).long(), total - 1)
    return torch.searchsorted(heaps, aims, right=True)[:, 0].clamp_(max=weights.shape[-1] - 1)


def thresholds(depths: torch.Tensor, weights: torch.Tensor, limits: Limits) -> torch.Tensor:
    """The least depth that each row keeps [rows, 1]. Reads nothing back to the host."""
    floor = torch.maximum(limits.floor, _kth(depths, limits)) if limits.most_k else limits.floor
    if not limits.any_p:
        return floor
    need = _need(depths, weights, floor, limits)
    low = _highest(lambda edge: _mass(depths, weights, edge) >= need, floor.clamp(min=_DEEPEST))
    return torch.where(limits.top_p < 1, low, floor)


def thresholds_by_shortlist(
    depths: torch.Tensor, weights: torch.Tensor, limits: Limits, width: int = SHORTLIST
) -> torch.Tensor:
    """The same from the `width` best tokens, which contain each row's `top_k`; from all of them for the rows that need
    more. Where reading back costs nothing this takes one look at the row, not 24.
    """
    best, order = depths.topk(min(width, depths.shape[-1]), dim=-1)
    last = best.shape[-1] - 1
    kth = best.gather(-1, (limits.top_k - 1).clamp(min=0, max=last))
    floor = torch.maximum(limits.floor, kth.masked_fill(limits.top_k <= 0, float("-inf")))
    if not limits.any_p:
        return floor
    heaps = weights.gather(-1, order).masked_fill(best < floor, 0).cumsum(-1, dtype=torch.int64)
    before = (heaps < _need(depths, weights, floor, limits)).sum(-1, keepdim=True)  # tokens that are not enough
    found = torch.where(limits.top_p < 1, best.gather(-1, before.clamp(max=last)), floor)
    missed = ((limits.top_p < 1) & (before > last))[:, 0].nonzero()[:, 0]
    if len(missed) and width < depths.shape[-1]:
        rest = Limits(limits.floor[missed], limits.top_k[missed], limits.top_p[missed], limits.most_k, True)
        found[missed] = thresholds_by_shortlist(depths[missed], weights[missed], rest, width=depths.shape[-1])
    return found


def _kth(depths: torch.Tensor, limits: Limits) -> torch.Tensor:
    """The depth of each row's k-th token. Rows with a great k come apart from others: company changes nothing."""
    if limits.most_k <= SHORTLIST:
        best = depths.topk(limits.most_k, dim=-1).values
        kth = best.gather(-1, (limits.top_k - 1).clamp(min=0))
    else:
        low = torch.full_like(limits.floor, _DEEPEST)
        kth = _highest(lambda edge: (depths >= edge).sum(-1, keepdim=True) >= limits.top_k, low)
    return kth.masked_fill(limits.top_k <= 0, float("-inf"))


def _need(depths: torch.Tensor, weights: torch.Tensor, floor: torch.Tensor, limits: Limits) -> torch.Tensor:
    """The weight that the nucleus must reach: top-p's part of what min-p and top-k have left."""
    return (limits.top_p * _mass(depths, weights, floor)).ceil().clamp(min=1).long()


def _mass(depths: torch.Tensor, weights: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    return torch.where(depths >= edge, weights, 0).sum(-1, keepdim=True, dtype=torch.int64)


def _highest(enough: Callable[[torch.Tensor], torch.Tensor], low: torch.Tensor) -> torch.Tensor:
    """The highest edge that still leaves enough, by halving between `low`, which does or is returned, and 0."""
    high = torch.zeros_like(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        good = enough(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return low
