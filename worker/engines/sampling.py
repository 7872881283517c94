"""The next token of every row, each by its own settings and its own dice."""

import random
from collections.abc import Callable
from collections.abc import Sequence as Many

import torch

from broker.wire import Sampling

_SHORTLIST = 1024  # candidates looked at for top-p before the whole vocabulary is sorted


class Dice:
    """One job's random numbers: one draw a token, so the same seed gives the same text in any company."""

    def __init__(self, seed: int | None, skip: int = 0) -> None:
        """`skip`: tokens another node has drawn already, when a job is continued."""
        self._random = random.Random(seed)
        for _ in range(skip if seed is not None else 0):
            self._random.random()

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        return self._random.random()


Method = Callable[[torch.Tensor, list[Sampling], list[Dice]], torch.Tensor]


def choose(logits: torch.Tensor, settings: list[Sampling], dice: list[Dice]) -> list[int]:
    """Token ids for `logits` [rows, vocabulary]; greedy rows draw no random number."""
    tokens = [0] * len(settings)
    groups: dict[Method, list[int]] = {}
    for row, setting in enumerate(settings):
        groups.setdefault(_method(setting), []).append(row)
    for method, rows in groups.items():
        part = logits if len(rows) == len(settings) else logits[rows]
        chosen = method(part.float(), [settings[row] for row in rows], [dice[row] for row in rows])
        for row, token in zip(rows, chosen.tolist(), strict=True):
            tokens[row] = token
    return tokens


def _method(setting: Sampling) -> Method:
    if setting.temperature <= 0:
        return _greedy
    return _plain if setting.top_k <= 0 and setting.top_p >= 1 else _narrowed


def _greedy(logits: torch.Tensor, settings: list[Sampling], dice: list[Dice]) -> torch.Tensor:
    return logits.argmax(dim=-1)


def _plain(logits: torch.Tensor, settings: list[Sampling], dice: list[Dice]) -> torch.Tensor:
    """From the whole vocabulary: no sorting, which would cost more than a small model's forward pass."""
    weights = torch.softmax(logits / _column([s.temperature for s in settings], logits), dim=-1)
    return _pick(weights, dice)


def _narrowed(logits: torch.Tensor, settings: list[Sampling], dice: list[Dice]) -> torch.Tensor:
    """From the top-k most likely tokens, and of those the fewest that reach top-p."""
    scaled = logits / _column([s.temperature for s in settings], logits)
    vocabulary = logits.shape[-1]
    top_k = _column([s.top_k if 0 < s.top_k < vocabulary else vocabulary for s in settings], logits)
    top_p = _column([s.top_p for s in settings], logits)
    width = min(vocabulary, max(_SHORTLIST, *(s.top_k for s in settings)))
    weights, order = _shortlist(scaled, top_k, width)
    if width < vocabulary and bool(((top_k > width) & (weights.sum(-1, keepdim=True) < top_p)).any()):
        weights, order = _shortlist(scaled, top_k, vocabulary)
    before = weights.cumsum(-1) - weights
    weights[:, 1:] *= before[:, 1:] < top_p  # the most likely token always stays
    return order.gather(-1, _pick(weights, dice)[:, None])[:, 0]


def _shortlist(scaled: torch.Tensor, top_k: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `width` best candidates, best first: probabilities among the row's top-k, and token ids."""
    values, order = scaled.topk(width, dim=-1)
    rank = torch.arange(width, device=scaled.device)
    inside = values.masked_fill(rank >= top_k, float("-inf"))
    total = torch.where(top_k > width, scaled.logsumexp(-1, keepdim=True), inside.logsumexp(-1, keepdim=True))
    return (inside - total).exp(), order


def _pick(weights: torch.Tensor, dice: list[Dice]) -> torch.Tensor:
    """Index per row, with probability in proportion to its weight (inverse of the cumulative sum)."""
    heaps = weights.cumsum(-1)
    draws = _column([die.draw() for die in dice], weights)
    index = torch.searchsorted(heaps, draws * heaps[:, -1:], right=True)[:, 0]
    return index.clamp_(max=weights.shape[-1] - 1)


def _column(values: Many[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=torch.float32)[:, None]
