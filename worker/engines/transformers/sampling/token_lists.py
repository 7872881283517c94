"""Masks as lists of token ids, for a CPU: sampling among the few allowed tokens, or forbidding
the few others, costs less there than one more pass over the whole vocabulary.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch

FEW = 4096  # allowed tokens, up to which only they are sampled
_MAX_KEPT = 256  # lists
_MAX_KEPT_IDS = 2 << 20  # in them, of 8 bytes each


class TokenList(NamedTuple):
    """`ids`: ascending; the tokens that are allowed where they are few, else those that are not."""

    ids: torch.Tensor
    few: bool

    def apply(self, logits: torch.Tensor) -> None:
        """Sets one row's logits to -inf where a token is not allowed."""
        if self.few:
            allowed = logits.index_select(0, self.ids)
            logits.fill_(float("-inf"))
            logits.index_copy_(0, self.ids, allowed)
        else:
            logits.index_fill_(0, self.ids, float("-inf"))


class TokenLists:
    """Keeps the latest: inside of a string, say, the mask is the same again and again."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._shifts = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)
        self._kept: OrderedDict[bytes, TokenList] = OrderedDict()
        self._kept_ids = 0

    def of(self, mask: torch.Tensor) -> TokenList:
        """The tokens of one mask, which has a bit a token."""
        key = mask.numpy().tobytes()
        tokens = self._kept.get(key)
        if tokens is not None:
            self._kept.move_to_end(key)
            return tokens
        tokens = self._expand(mask)
        self._keep(key, tokens)
        return tokens

    def _expand(self, mask: torch.Tensor) -> TokenList:
        bits = mask.view(torch.uint8)[:, None].bitwise_and(self._shifts).flatten()
        allowed = bits[: self._vocabulary] != 0
        ids = allowed.nonzero()[:, 0]
        if len(ids) <= FEW:
            return TokenList(ids, few=True)
        return TokenList(allowed.logical_not_().nonzero()[:, 0], few=False)

    def _keep(self, key: bytes, tokens: TokenList) -> None:
        self._kept[key] = tokens
        self._kept_ids += len(tokens.ids)
        while len(self._kept) > _MAX_KEPT or self._kept_ids > _MAX_KEPT_IDS:
            _, dropped = self._kept.popitem(last=False)
            self._kept_ids -= len(dropped.ids)


def padded(lists: list[TokenList]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of few tokens as one [rows, the longest], and where it is nothing but padding."""
    lengths = torch.tensor([len(tokens.ids) for tokens in lists])
    ids = torch.nn.utils.rnn.pad_sequence([tokens.ids for tokens in lists], batch_first=True)
    return ids, torch.arange(ids.shape[1]) >= lengths[:, None]
