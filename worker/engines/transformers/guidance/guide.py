"""One answer's way through its grammar: which tokens may come next, and whether it is complete."""

import torch
from llguidance import LLMatcher, LLTokenizer

from worker.engines.base import InvalidRequest


class Guide:
    """Belongs to its sequence, and so to one thread at a time. Follows the tokens that the host
    knows; `version` grows with each.
    """

    def __init__(
        self, matcher: LLMatcher, first_mask: torch.Tensor, tokenizer: LLTokenizer
    ) -> None:
        """`matcher`: the grammar's, in its initial state; it is not changed."""
        self.matcher = matcher.deep_copy()
        self.version = 0
        self.too_slow = False  # its masks hold the others up
        self._initial = matcher
        self.first_mask = first_mask
        self._tokenizer = tokenizer

    @property
    def words(self) -> int:
        """Of a mask: 32 tokens each."""
        return len(self.first_mask)

    @property
    def complete(self) -> bool:
        """Whether the grammar is satisfied and allows nothing more."""
        return self.matcher.is_stopped() and not self.failed

    def append(self, token: int) -> None:
        """The answer goes on with that token. Raises InvalidRequest if the grammar forbids it."""
        self.version += 1
        if not self.matcher.consume_token(token):
            raise self.error()

    def append_text(self, text: str) -> None:
        """The answer goes on with tokens that are not known, only their text."""
        self.version += 1
        tokens = self._tokenizer.tokenize_str(text, parse_special=True)
        if not self.matcher.consume_tokens(tokens):
            raise self.error()

    def restart(self) -> None:
        """Back to the beginning."""
        self.version = 0
        self.matcher = self._initial.deep_copy()  # `reset` would not end an error

    @property
    def failed(self) -> bool:
        """Whether nothing more is known of what may come next."""
        return self.matcher.is_error()

    def check(self) -> None:
        """Raises InvalidRequest if the grammar cannot be kept any longer."""
        if self.too_slow:
            raise InvalidRequest("the grammar takes too long to compute a token; simplify it")
        if self.failed:
            raise self.error()

    def error(self) -> InvalidRequest:
        """Why the grammar cannot be kept any longer: it is too ambiguous, in most cases."""
        reason = self.matcher.get_error().splitlines() or ["the token does not fit"]
        return InvalidRequest(f"the answer left its grammar, or that is too complex: {reason[0]}")


def mask_words(tokenizer: LLTokenizer) -> int:
    """Of 32 tokens each."""
    return -(-tokenizer.vocab_size // 32)


def next_mask(matcher: LLMatcher, mask: torch.Tensor) -> None:
    """Writes the matcher's mask; the matcher is in error if it cannot compute one."""
    matcher.unsafe_compute_mask_ptr(mask.data_ptr(), mask.nbytes)
