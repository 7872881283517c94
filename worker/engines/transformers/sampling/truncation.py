"""Truncation (min-p, top-k, top-p) and the draw of one token a row.

Weights are whole numbers: WHOLE for the likeliest token, the others in proportion; a token less
than a billionth as likely has weight 0. Integer sums do not depend on the order in which a device
adds them up, so neither a draw nor a nucleus depends on how many rows are computed together.

min-p, top-k and top-p each keep the tokens above some logit, so together they are one threshold a
row. Equally likely tokens are kept or dropped together: top-k may keep more than k, top-p more than
the fewest. Tensors are [rows, ...], and a row's result depends on that row alone.

Two algorithms find a threshold. Sorting the SHORTLIST best logits is fast, but cannot tell the
threshold of a row whose nucleus is larger. Bisection works for any row and never waits for the
device, but passes over the whole vocabulary 24 times.
"""

from collections.abc import Callable

import msgspec
import torch

SHORTLIST = 1024  # holds most nuclei, and is cheap to find
WHOLE = 2.0**30
_BLOCK = 512  # tokens whose weights are summed before one of them is looked for
_MIN_SHIFTED = -21.0  # logits this far below the row's maximum have weight 0
_BISECTIONS = 24  # resolve 21 / 2**24, about the resolution of float32


class TruncationParams(msgspec.Struct):
    """What each row keeps: tensors [rows, 1] on the device, None where no row asks for it."""

    min_shifted: torch.Tensor  # float32: the logarithm of min-p; -inf: off
    top_k: torch.Tensor | None = None  # int64; either every row has one or none has
    top_p: torch.Tensor | None = None  # float64; 1 and above: off
    max_top_k: int = 0  # the greatest of `top_k`, known to the host


Threshold = Callable[[torch.Tensor, torch.Tensor, TruncationParams], torch.Tensor]


def to_weights(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shifted logits (0 for the row's maximum, negative below it) and their weights (int32).

    `logits` must be float32, and are overwritten by the shifted ones.
    """
    shifted = logits.sub_(logits.amax(-1, keepdim=True))
    return shifted, shifted.exp().mul_(WHOLE).int()


def sample(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Index per row, with probability in proportion to its weight.

    `uniforms` [rows, 1]: float64 in [0, 1), a position in the cumulative weights. The block at that
    position is found first, then the token: cumulative sums over whole rows would be most of the
    work.
    """
    cumulative = _block_sums(weights).cumsum(-1)
    total = cumulative[:, -1:]
    targets = torch.minimum((uniforms * total).long(), total - 1)
    block = torch.searchsorted(cumulative, targets, right=True)
    block = block.clamp_(max=cumulative.shape[-1] - 1)
    before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp_(min=0)), 0)
    last = weights.shape[-1] - 1
    tokens = block * _BLOCK + torch.arange(min(_BLOCK, last + 1), device=weights.device)
    inside = weights.gather(-1, tokens.clamp(max=last)).cumsum(-1, dtype=torch.int64)
    offset = torch.searchsorted(inside, targets - before, right=True)
    return (block * _BLOCK + offset)[:, 0].clamp_(max=last)


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """Sums of _BLOCK weights each [rows, blocks]; the last block may be shorter."""
    whole = weights.shape[-1] // _BLOCK * _BLOCK
    blocks = weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1, dtype=torch.int64)
    rest = weights[:, whole:].sum(-1, keepdim=True, dtype=torch.int64)
    return torch.cat([blocks, rest], dim=-1)


def truncate(shifted: torch.Tensor, weights: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """The weights, with 0 for every token below its row's `threshold` [rows, 1]."""
    return weights * (shifted >= threshold)


def threshold_in_top_k(
    shifted: torch.Tensor, weights: torch.Tensor, params: TruncationParams
) -> torch.Tensor:
    """The least shifted logit that each row keeps [rows, 1], by sorting the `max_top_k` best."""
    threshold, _ = _threshold_among_best(shifted, weights, params, params.max_top_k)
    return threshold


def threshold_in_shortlist(
    shifted: torch.Tensor, weights: torch.Tensor, params: TruncationParams
) -> torch.Tensor:
    """The same for rows without top-k, by sorting the SHORTLIST best.

    The few rows whose nucleus is larger are bisected. Waits for the device to learn which.
    """
    threshold, missed = _threshold_among_best(shifted, weights, params, SHORTLIST)
    rows = missed[:, 0].nonzero()[:, 0]
    if len(rows):
        missed_params = TruncationParams(params.min_shifted[rows])
        if params.top_p is not None:
            missed_params.top_p = params.top_p[rows]
        threshold[rows] = threshold_by_bisection(shifted[rows], weights[rows], missed_params)
    return threshold


def threshold_by_bisection(
    shifted: torch.Tensor, weights: torch.Tensor, params: TruncationParams
) -> torch.Tensor:
    """The same for any rows, without sorting and without waiting for the device."""
    floor, top_k = params.min_shifted, params.top_k
    if top_k is not None:

        def keeps_k(edge: torch.Tensor) -> torch.Tensor:
            return (shifted >= edge).sum(-1, keepdim=True) >= top_k

        kth = _highest_edge(keeps_k, torch.full_like(floor, _MIN_SHIFTED))
        floor = torch.maximum(floor, kth)
    if params.top_p is None:
        return floor
    nucleus = _nucleus_mass(shifted, weights, floor, params.top_p)

    def keeps_nucleus(edge: torch.Tensor) -> torch.Tensor:
        return _mass(shifted, weights, edge) >= nucleus

    edge = _highest_edge(keeps_nucleus, floor.clamp(min=_MIN_SHIFTED))
    return torch.where(params.top_p < 1, edge, floor)


def _threshold_among_best(
    shifted: torch.Tensor, weights: torch.Tensor, params: TruncationParams, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Thresholds by sorting the `width` best tokens, and which rows would need more of them."""
    best, order = shifted.topk(min(width, shifted.shape[-1]), dim=-1)
    floor = params.min_shifted
    if params.top_k is not None:
        last = best.shape[-1] - 1  # fewer tokens than top-k may be left
        floor = torch.maximum(floor, best.gather(-1, (params.top_k - 1).clamp(max=last)))
    if params.top_p is None:
        return floor, torch.zeros_like(floor, dtype=torch.bool)
    nucleus = _nucleus_mass(shifted, weights, floor, params.top_p)
    sorted_weights = weights.gather(-1, order).masked_fill(best < floor, 0)
    cumulative = sorted_weights.cumsum(-1, dtype=torch.int64)
    too_few = (cumulative < nucleus).sum(-1, keepdim=True)  # so many tokens are not enough
    inside = too_few < best.shape[-1]
    edge = best.gather(-1, too_few.clamp(max=best.shape[-1] - 1))
    return torch.where(params.top_p < 1, edge, floor), ~inside & (params.top_p < 1)


def _nucleus_mass(
    shifted: torch.Tensor, weights: torch.Tensor, floor: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """The weight that the nucleus must reach: top-p of what min-p and top-k have left."""
    return (top_p * _mass(shifted, weights, floor)).ceil().clamp(min=1).long()


def _mass(shifted: torch.Tensor, weights: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    return truncate(shifted, weights, edge).sum(-1, keepdim=True, dtype=torch.int64)


def _highest_edge(
    keeps_enough: Callable[[torch.Tensor], torch.Tensor], low: torch.Tensor
) -> torch.Tensor:
    """The highest edge in [low, 0] that keeps enough, by bisection; `low` if none does."""
    high = torch.zeros_like(low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = keeps_enough(middle)
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low
