"""How much of the KV cache is kept free for the answers of sequences that run already, and how many
more sequences of the usual size there is room for.

Blocks are taken as answers grow. If prompts took all of them, running sequences would be preempted
to make room for one another, and computed again and again.
"""

from collections.abc import Iterable

from worker.engines.transformers.row import Row

_UNKNOWN_ANSWER = 256  # tokens, until some sequences have ended
_UNKNOWN_LENGTH = 512
_WEIGHT = 0.05  # of the latest sequence in the averages


class SequenceSizes:
    """How long sequences have been lately."""

    def __init__(self) -> None:
        self._answer = float(_UNKNOWN_ANSWER)
        self._own = float(_UNKNOWN_LENGTH)  # tokens, without those shared with others

    def observe(self, row: Row) -> None:
        """A sequence has ended."""
        self._answer += _WEIGHT * (row.answer_length - self._answer)
        self._own += _WEIGHT * (row.position + 1 - row.shared - self._own)

    def reserved_tokens(self, rows: Iterable[Row]) -> int:
        """How many tokens the running sequences are expected to add."""
        expected = int(self._answer)
        total = 0
        for row in rows:
            total += max(0, min(row.max_tokens, expected) - row.sampled)
        return total

    def room(self, free_tokens: int) -> int:
        """How many more sequences fit into that."""
        return int(max(0, free_tokens) / max(1.0, self._own))
