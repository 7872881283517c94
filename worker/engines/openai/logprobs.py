"""Logprobs as servers send them, in the two shapes of OpenAI's API.

What cannot be read is left out: an answer does not fail for it.
"""

import re
from typing import Any

import msgspec

from broker.wire import LEAST_LOGPROB, TokenLogprob

_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")  # vLLM's form of a part of a character


class _Candidate(msgspec.Struct, frozen=True):
    token: str
    logprob: float | None = None
    token_bytes: list[int] | None = msgspec.field(name="bytes", default=None)

    def read(self) -> tuple[bytes, float]:
        """The token's bytes and its logprob."""
        return _bytes_of(self.token, self.token_bytes), _bounded(self.logprob)


class _Token(_Candidate, frozen=True):
    top_logprobs: list[_Candidate] | None = None


class _Chat(msgspec.Struct, frozen=True):
    content: list[_Token]


class _Text(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None = None


def read(logprobs: Any, alternatives: int) -> tuple[TokenLogprob, ...]:
    """A choice's `logprobs` field, with at most `alternatives` a token."""
    if not isinstance(logprobs, dict):
        return ()
    try:
        if logprobs.get("content"):
            return _of_chat(msgspec.convert(logprobs, _Chat), alternatives)
        if logprobs.get("tokens"):
            return _of_text(msgspec.convert(logprobs, _Text), alternatives)
    except (msgspec.ValidationError, ValueError):  # ValueError: numbers that are no bytes
        pass
    return ()


def _of_chat(chat: _Chat, alternatives: int) -> tuple[TokenLogprob, ...]:
    tokens: list[TokenLogprob] = []
    for token in chat.content:
        tokens.append(_token_logprob(token, token.top_logprobs or [], alternatives))
    return tuple(tokens)


def _of_text(text: _Text, alternatives: int) -> tuple[TokenLogprob, ...]:
    tops = text.top_logprobs or [None] * len(text.tokens)
    tokens: list[TokenLogprob] = []
    for name, logprob, top in zip(text.tokens, text.token_logprobs, tops, strict=False):
        candidates: list[_Candidate] = []
        for candidate, candidate_logprob in (top or {}).items():
            candidates.append(_Candidate(candidate, candidate_logprob))
        tokens.append(_token_logprob(_Candidate(name, logprob), candidates, alternatives))
    return tuple(tokens)


def _token_logprob(
    sampled: _Candidate, candidates: list[_Candidate], alternatives: int
) -> TokenLogprob:
    token, logprob = sampled.read()
    best = [candidate.read() for candidate in candidates]
    best.sort(key=_descending)
    return TokenLogprob(token, logprob, tuple(best[:alternatives]))


def _descending(candidate: tuple[bytes, float]) -> float:
    return -candidate[1]


def _bytes_of(name: str, numbers: list[int] | None) -> bytes:
    if numbers:
        return bytes(numbers)
    match = _BYTES.fullmatch(name)
    if match:
        return bytes.fromhex(match[1].replace("\\x", ""))
    return name.encode(errors="replace")


def _bounded(logprob: float | None) -> float:
    if logprob is None:
        return LEAST_LOGPROB
    return min(0.0, max(LEAST_LOGPROB, logprob))
