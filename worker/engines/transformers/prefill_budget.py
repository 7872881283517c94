"""How many prompt tokens a step reads, and whose: a long prompt must neither hold up those who decode nor hold back
the short prompts behind it.
"""

PREFILL_SECONDS = 0.1  # of a step that others decode in
_LEAST = 8  # tokens; fewer would hardly be faster


class PrefillBudget:
    """Prompt tokens for the next step.

    Reading costs more the further a prompt has been read, so a number of tokens bounds no time. Where a step is waited
    for (`timed`), the budget follows what the last tokens took; a GPU has its answer from a measurement at the start.
    """

    def __init__(self, most: int, *, timed: bool) -> None:
        self._most = most
        self._timed = timed
        self._tokens_per_second: float | None = None

    def tokens(self, *, decoding: bool) -> int:
        """At most so many. `decoding`: somebody waits for the next token meanwhile."""
        if not (decoding and self._timed) or self._tokens_per_second is None:
            return self._most
        affordable = int(self._tokens_per_second * PREFILL_SECONDS)
        return min(self._most, max(_LEAST, affordable // _LEAST * _LEAST))

    def observe(self, tokens: int, seconds: float) -> None:
        """The latest step read so many tokens in that time."""
        if tokens >= _LEAST and seconds > 0:
            self._tokens_per_second = tokens / seconds


def shares(remaining: list[int], budget: int) -> list[int]:
    """How many tokens of each prompt a step reads; `remaining`: what each still has to read, oldest first.

    Half of the budget is the oldest prompt's, so that it ends whoever comes. The other half goes to those that have the
    least left, as shortest-job-first keeps the mean wait low, and what they do not need to the oldest again.
    """
    if not remaining:
        return []
    oldest = min(remaining[0], budget - budget // 2)
    left = budget - oldest
    given = [0] * len(remaining)
    for index in sorted(range(1, len(remaining)), key=remaining.__getitem__):
        given[index] = min(remaining[index], left)
        left -= given[index]
    given[0] = min(remaining[0], oldest + left)
    return given
