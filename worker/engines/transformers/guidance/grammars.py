"""Compiles grammars for one model, and keeps those that are used again."""

import hashlib
import threading
from collections import OrderedDict
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer

from broker.wire import Grammar
from worker.engines.base import EngineFailed, InvalidRequest
from worker.engines.deep_stack import run_deep
from worker.engines.grammar_source import (
    Unsatisfiable,
    compilable,
    parser_limits,
    refusal,
    why_stopped,
)
from worker.engines.transformers.guidance.guide import Guide, mask_words, next_mask
from worker.engines.transformers.guidance.vocabulary import wrap_tokenizer

MAX_KEPT = 256  # compiled grammars
MAX_KEPT_SOURCE = 2 << 20  # bytes of their sources; a compiled one may take some hundred times that
COMPILE_SECONDS = 5.0
_MAX_COMPILING = 2  # at a time, with those that nobody waits for any more


class Compiled:
    """A grammar for a model's tokenizer, in its initial state."""

    def __init__(self, matcher: LLMatcher, first_mask: torch.Tensor) -> None:
        self._matcher = matcher
        self._first_mask = first_mask

    def start(self, tokenizer: LLTokenizer) -> Guide:
        """A new answer."""
        return Guide(self._matcher, self._first_mask, tokenizer)


class Grammars:
    """Used by all intake threads."""

    def __init__(self, tokenizer: Any, vocabulary: int, eos_token_ids: frozenset[int]) -> None:
        self._wrap = tokenizer, vocabulary, eos_token_ids
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[bytes, tuple[Compiled, int]] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._compiling = threading.Semaphore(_MAX_COMPILING)

    def start(self, grammar: Grammar) -> Guide:
        """Begins an answer that keeps the grammar; may take seconds.

        Raises InvalidRequest for a grammar that is wrong, not supported or too large, EngineFailed
        where others take too long to compile.
        """
        key = hashlib.sha256(f"{grammar.kind}\0{grammar.source}".encode()).digest()
        tokenizer = self._wrapped()
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        if kept is not None:
            return kept[0].start(tokenizer)
        compiled = self._compile(grammar, tokenizer)
        self._keep(key, compiled, len(grammar.source))
        return compiled.start(tokenizer)

    def _wrapped(self) -> LLTokenizer:
        """Made for the first grammar: most models never see one."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = wrap_tokenizer(*self._wrap)
            return self._tokenizer

    def _keep(self, key: bytes, compiled: Compiled, size: int) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = compiled, size
            self._kept_bytes += size
            while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_SOURCE:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._kept_bytes -= dropped

    def _compile(self, grammar: Grammar, tokenizer: LLTokenizer) -> Compiled:
        """In a thread of its own, which is left behind if it takes too long."""
        text = compilable(grammar)
        if not self._compiling.acquire(timeout=COMPILE_SECONDS):
            raise EngineFailed("other grammars take too long to compile", isolated=True)
        try:
            return run_deep(
                lambda: _compiled(tokenizer, text), COMPILE_SECONDS, self._compiling.release
            )
        except TimeoutError as error:
            raise InvalidRequest(
                f"the grammar takes more than {COMPILE_SECONDS:.0f} s to compile; simplify it"
            ) from error
        except Unsatisfiable as error:
            raise refusal(grammar, str(error)) from error


def _compiled(tokenizer: LLTokenizer, text: str) -> Compiled:
    """Raises Unsatisfiable."""
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=parser_limits())
    mask = torch.zeros(mask_words(tokenizer), dtype=torch.int32)
    if not matcher.is_error():
        next_mask(matcher, mask)
    if matcher.is_stopped():
        raise Unsatisfiable(why_stopped(matcher))
    return Compiled(matcher, mask)
