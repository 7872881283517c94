"""Logprobs as servers tell them, in the two shapes of OpenAI's API. What cannot be read is left out: an answer does not
fail for it.
"""

import re
from typing import Any

import msgspec

from broker.wire import LEAST_LOGPROB, TokenLogprob

_BYTES = re.compile(
    r"bytes:((?:\\x[0-9a-f]{2})+)"
)  # how vLLM and others write a part of a character


class _Likely(msgspec.Struct, frozen=True):
    token: str
    logprob: float | None = None
    spelt: list[int] | None = msgspec.field(name="bytes", default=None)

    def read(self) -> tuple[bytes, float]:
        """The token and its logprob."""
        return _spelt(self.token, self.spelt), _bounded(self.logprob)


class _Token(_Likely, frozen=True):
    top_logprobs: list[_Likely] | None = None


class _Chat(msgspec.Struct, frozen=True):
    content: list[_Token]


class _Text(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None = None


def read(told: Any, alternatives: int) -> tuple[TokenLogprob, ...]:
    """What a choice's `logprobs` say, with so many alternatives a token at most."""
    try:
        if isinstance(told, dict) and told.get("content"):
            chat = msgspec.convert(told, _Chat)
            return tuple(
                _token(each, each.top_logprobs or [], alternatives) for each in chat.content
            )
        if isinstance(told, dict) and told.get("tokens"):
            return _of_text(msgspec.convert(told, _Text), alternatives)
    except (msgspec.ValidationError, ValueError):  # ValueError: bytes that are none
        pass
    return ()


def _of_text(text: _Text, alternatives: int) -> tuple[TokenLogprob, ...]:
    tops = text.top_logprobs or [None] * len(text.tokens)
    return tuple(
        _token(
            _Likely(name, logprob), [_Likely(*other) for other in (top or {}).items()], alternatives
        )
        for name, logprob, top in zip(text.tokens, text.token_logprobs, tops, strict=False)
    )


def _token(own: _Likely, others: list[_Likely], alternatives: int) -> TokenLogprob:
    token, logprob = own.read()
    best = sorted((other.read() for other in others), key=lambda each: -each[1])
    return TokenLogprob(token, logprob, tuple(best[:alternatives]))


def _spelt(name: str, told: list[int] | None) -> bytes:
    if told:
        return bytes(told)
    if found := _BYTES.fullmatch(name):
        return bytes.fromhex(found[1].replace("\\x", ""))
    return name.encode(errors="replace")


def _bounded(logprob: float | None) -> float:
    return LEAST_LOGPROB if logprob is None else min(0.0, max(LEAST_LOGPROB, logprob))
