"""How long answers of a language model are: quantiles of a published trace.

Azure LLM inference trace 2023, conversation service (AzureLLMInferenceTrace_conv.csv, column
GeneratedTokens), https://github.com/Azure/AzurePublicDataset, CC-BY; described in Patel et al.,
"Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024. The quantiles are
of 861 requests: two stretches of consecutive ones, from 2023-11-16 18:21:22 and 18:41:12. Their
median is 134 tokens (129 in the whole trace, says the paper), their mean 226, and CV² is 0.6.
"""

from bisect import bisect_right
from itertools import pairwise

_STEP = 0.05
# tokens that 0 %, 5 %, … 95 % of the answers do not exceed; then 99 % and all
_TWENTIETHS = (
    *(12, 40, 50, 57, 66, 76, 84, 92, 99, 109),
    *(134, 162, 283, 388, 396, 401, 410, 420, 435, 483),
)
TOKENS = [(round(i * _STEP, 2), tokens) for i, tokens in enumerate(_TWENTIETHS)]
TOKENS += [(0.99, 610), (1.00, 939)]
_SHARES = [share for share, _ in TOKENS]


def quantile(share: float) -> float:
    """Tokens that `share` (0 to 1) of the answers do not exceed; linear between table lines."""
    index = min(bisect_right(_SHARES, share), len(TOKENS) - 1)
    (low, short), (high, long) = TOKENS[index - 1], TOKENS[index]
    return short + (long - short) * (share - low) / (high - low)


def mean() -> float:
    """The mean of `quantile` over all shares."""
    return sum((high - low) * (short + long) / 2 for (low, short), (high, long) in pairwise(TOKENS))
