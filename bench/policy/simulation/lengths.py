"""How long answers of a language model are: quantiles of a published trace.

Source: Azure LLM inference trace 2023, conversation service (AzureLLMInferenceTrace_conv.csv, column GeneratedTokens),
https://github.com/Azure/AzurePublicDataset, CC-BY; described in Patel et al., "Splitwise: Efficient generative LLM
inference using phase splitting", ISCA 2024. The quantiles are of 861 requests: two stretches of consecutive ones, from
2023-11-16 18:21:22 and 18:41:12. Their median is 134 tokens (the paper gives 129 for the whole trace), their mean 226.

The lengths have two humps, at about 90 and 400 tokens, and vary less than exponential ones: CV^2 is 0.6.
"""

from bisect import bisect_right
from itertools import pairwise

TOKENS = (
    (0.00, 12), (0.05, 40), (0.10, 50), (0.15, 57), (0.20, 66), (0.25, 76), (0.30, 84), (0.35, 92), (0.40, 99),
    (0.45, 109), (0.50, 134), (0.55, 162), (0.60, 283), (0.65, 388), (0.70, 396), (0.75, 401), (0.80, 410),
    (0.85, 420), (0.90, 435), (0.95, 483), (0.99, 610), (1.00, 939),
)  # fmt: skip
"""(share of the answers that are no longer, tokens)"""

_SHARES = [share for share, _ in TOKENS]


def quantile(share: float) -> float:
    """Tokens that no more than `share` (0 to 1) of the answers exceed from below; linear between the table's lines."""
    place = min(bisect_right(_SHARES, share), len(TOKENS) - 1)
    (low, short), (high, long) = TOKENS[place - 1], TOKENS[place]
    return short + (long - short) * (share - low) / (high - low)


def mean() -> float:
    """The mean of `quantile` over all shares, in tokens."""
    return sum((high - low) * (short + long) / 2 for (low, short), (high, long) in pairwise(TOKENS))
