"""How long answers of a language model are: quantiles of a published trace.

Azure LLM inference trace 2023, conversation service (AzureLLMInferenceTrace_conv.csv, column
GeneratedTokens), https://github.com/Azure/AzurePublicDataset, CC-BY; described in Patel et al.,
"Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024. The quantiles are
of 861 requests: two stretches of consecutive ones, from 2023-11-16 18:21:22 and 18:41:12. Their
median is 134 tokens (129 in the whole trace, says the paper), their mean 226, and CV² is 0.6.
"""

from bisect import bisect_right

# (share of the answers, tokens that they do not exceed)
TOKENS = (
    (0.0, 12), (0.05, 40), (0.1, 50), (0.15, 57), (0.2, 66), (0.25, 76),
    (0.3, 84), (0.35, 92), (0.4, 99), (0.45, 109), (0.5, 134), (0.55, 162),
    (0.6, 283), (0.65, 388), (0.7, 396), (0.75, 401), (0.8, 410), (0.85, 420),
    (0.9, 435), (0.95, 483), (0.99, 610), (1.0, 939),
)  # fmt: skip


def quantile(share: float) -> float:
    """Tokens that `share` (0 to 1) of the answers do not exceed; linear between table lines."""
    index = min(bisect_right(TOKENS, (share, 10**9)), len(TOKENS) - 1)
    (low, short), (high, long) = TOKENS[index - 1], TOKENS[index]
    return short + (long - short) * (share - low) / (high - low)
