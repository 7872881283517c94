"""How many prompt tokens a step computes, and whose.

A long prompt must neither hold up the sequences that decode nor the short prompts behind it.
"""

PREFILL_SECONDS = 0.1  # of a step in which others decode
_MIN_TOKENS = 8  # fewer would hardly be faster


class PrefillBudget:
    """Prompt tokens for the next step.

    Prefill costs more the longer the prompt already is, so a fixed number of tokens bounds no time.
    Where the host waits for each step (`timed`), the budget follows the speed of the last one. A
    GPU's budget was measured at the start.
    """

    def __init__(self, max_tokens: int, *, timed: bool) -> None:
        self._max_tokens = max_tokens
        self._timed = timed
        self._tokens_per_second: float | None = None

    def tokens(self, *, decoding: bool) -> int:
        """The most tokens. `decoding`: other sequences wait for their next token meanwhile."""
        if not decoding or not self._timed or self._tokens_per_second is None:
            return self._max_tokens
        affordable = int(self._tokens_per_second * PREFILL_SECONDS)
        rounded = affordable // _MIN_TOKENS * _MIN_TOKENS
        return min(self._max_tokens, max(_MIN_TOKENS, rounded))

    def observe(self, tokens: int, seconds: float) -> None:
        """The latest step computed so many prompt tokens in that time."""
        if tokens >= _MIN_TOKENS and seconds > 0:
            self._tokens_per_second = tokens / seconds


def divide_budget(remaining: list[int], budget: int) -> list[int]:
    """How many tokens of each prompt a step computes. `remaining`: what each lacks, oldest first.

    Half of the budget is the oldest prompt's, so that it ends whatever arrives. The other half goes
    to the prompts that lack least (shortest job first keeps the mean wait low), and what they do
    not need to the oldest again.
    """
    if not remaining:
        return []
    oldest = min(remaining[0], budget - budget // 2)
    left = budget - oldest
    shares = [0] * len(remaining)
    for index in sorted(range(1, len(remaining)), key=remaining.__getitem__):
        shares[index] = min(remaining[index], left)
        left -= shares[index]
    shares[0] = min(remaining[0], oldest + left)
    return shares
