"""How many prompt tokens a step computes, and whose.

A long prompt must neither hold up the sequences that decode nor the short prompts behind it.
"""

from collections.abc import Mapping, Sequence

from worker.engines.transformers.model.cuda_graphs import MixedSize, sizes_beside
from worker.engines.transformers.throttle import CHUNKS_PER_SECOND

PREFILL_SECONDS = 0.1  # of a pass in which others wait, where the host waits for each pass
# Of a GPU's step that computes prompts and decodes. Where so many streams run that each is flushed
# more seldom (`throttle`), a step may take as long as that: nobody would notice a shorter one.
STEP_SECONDS = 0.042
_MIN_TOKENS = 8  # fewer would hardly be faster
_WEIGHT = 0.2  # of the latest step in the averages


class PrefillBudget:
    """Prompt tokens for the next step.

    Prefill costs more the longer the prompt already is, so a fixed number of tokens bounds no time:
    the budget follows the speed of the last ones.
    """

    def __init__(
        self,
        max_tokens: int,
        *,
        sizes: Sequence[MixedSize] = (),
        step_seconds: Mapping[int, float] | None = None,
    ) -> None:
        """`sizes`: of a GPU's graphs, in one of which the tokens are computed, so that a budget
        between two of them would be padded. `step_seconds`: as measured at the start, by the
        tokens of a step.
        """
        self.max_tokens = max_tokens
        self._sizes = [size for size in sizes if size.tokens <= max_tokens]
        self._step_seconds = dict(step_seconds or {})
        self._seconds = STEP_SECONDS if sizes else PREFILL_SECONDS
        speeds = [tokens / seconds for tokens, seconds in self._step_seconds.items()]
        self._fastest = max(speeds, default=0.0)  # tokens a second, as measured without decoding
        self._tokens_per_second: float | None = self._fastest or None
        self._decode_seconds = 0.0  # of a step without prompts

    def tokens(self, decoding: int) -> int:
        """The most tokens, while so many sequences wait for their next token."""
        sizes = sizes_beside(decoding, self._sizes)
        affordable = self._affordable(decoding) if decoding else self.max_tokens
        if not sizes:
            return min(self.max_tokens, max(_MIN_TOKENS, affordable // _MIN_TOKENS * _MIN_TOKENS))
        steps = sorted(size.tokens for size in sizes)
        fitting = [tokens for tokens in steps if tokens - decoding <= affordable] or steps[:1]
        return max(fitting, key=lambda tokens: (self._speed(tokens, decoding), tokens)) - decoding

    def seconds(self, tokens: int) -> float:
        """How much longer so many prompt tokens make a step."""
        if not tokens or self._tokens_per_second is None:
            return 0.0
        return tokens / self._tokens_per_second

    def _affordable(self, decoding: int) -> int:
        """How many tokens a step computes in its time."""
        if self._tokens_per_second is None:
            return self.max_tokens
        step_seconds = max(self._seconds, decoding / CHUNKS_PER_SECOND)
        # Full batches must be filled again: prompts get a third of a long step at least.
        seconds = max(step_seconds - self._decode_seconds, self._decode_seconds / 2)
        return int(self._tokens_per_second * seconds)

    def _speed(self, tokens: int, decoding: int) -> float:
        """Prompt tokens a second of a step, if it is as fast for each token as the measured one
        that is next to it in size; with none measured, the more tokens, the better.
        """
        if not self._step_seconds:
            return tokens
        nearest = min(self._step_seconds, key=lambda measured: abs(measured - tokens))
        return (tokens - decoding) / tokens * nearest / self._step_seconds[nearest]

    def observe(self, tokens: int, seconds: float) -> None:
        """The latest pass computed nothing but so many prompt tokens, in that time."""
        if tokens >= _MIN_TOKENS and seconds > 0:
            self._tokens_per_second = tokens / seconds
            self._fastest = max(self._fastest, self._tokens_per_second)

    def observe_step(self, tokens: int, seconds: float) -> None:
        """The latest step took that time; it decoded, and computed so many prompt tokens, too."""
        if tokens < _MIN_TOKENS:
            self._decode_seconds += _WEIGHT * (seconds - self._decode_seconds)
        elif self._tokens_per_second is not None and seconds > self._decode_seconds:
            # The difference may be next to nothing, as both times vary.
            speed = min(self._fastest, tokens / (seconds - self._decode_seconds))
            self._tokens_per_second += _WEIGHT * (speed - self._tokens_per_second)


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
