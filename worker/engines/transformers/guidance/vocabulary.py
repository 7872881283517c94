"""A model's tokenizer as llguidance wants it: the bytes of every token."""

from typing import Any

import llguidance.hf
from llguidance import LLTokenizer, TokenizerWrapper
from transformers import PreTrainedTokenizerFast

from worker.engines.transformers.text.token_bytes import TokenBytes


def wrap_tokenizer(tokenizer: Any, vocabulary: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """Takes about a second for a large vocabulary. `vocabulary`: as many as there are logits."""
    size = max(vocabulary, len(tokenizer))
    ends = sorted(token for token in eos_token_ids if token < size)
    if not ends:  # the engine ends a complete answer by itself, so the id is never sampled
        ends = [tokenizer.eos_token_id or 0]
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=size, eos_token=ends)
    return LLTokenizer(TokenizerWrapper(_Bytes(tokenizer, ends[0])), n_vocab=size, eos_token=ends)


class _Bytes:
    """A tokenizer written in Python, by what `TokenizerWrapper` asks of one."""

    def __init__(self, tokenizer: Any, eos_token_id: int) -> None:
        token_bytes = TokenBytes(tokenizer)
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [token_bytes.of(token) for token in range(len(tokenizer))]
        self.special_token_ids = list(tokenizer.all_special_ids)

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
