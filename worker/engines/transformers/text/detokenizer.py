"""From token ids to text, token by token, without ever showing half a character."""

from collections.abc import Mapping
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from worker.engines.transformers.text.token_bytes import TokenBytes

_REPLACEMENT = "\ufffd"  # what decoders put for bytes that are not (yet) UTF-8
_CONTEXT = 6  # tokens of the prompt decoded along, so that the first word keeps its leading space
_MAX_PENDING = 64  # tokens: a model that emits invalid bytes for ever is shown as it is


class Decodes(Protocol):
    """The part of a Hugging Face tokenizer that this module needs."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        """Text of the ids."""


class Detokenizer:
    """Text of one growing sequence.

    A token's text depends on its neighbours (leading spaces, characters of several tokens), so
    tokens are decoded together with the few before them, and the difference is the new text. The
    tokenizers library does the same four times faster, for tokenizers of its own.
    """

    def __init__(
        self,
        tokenizer: Decodes,
        before: list[int],
        shown: Mapping[int, str] | None = None,
        *,
        skip_special: bool = True,
    ) -> None:
        """`skip_special`: control tokens have no text, except those that are `shown`."""
        self._special_texts = (shown or {}) if skip_special else {}
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._shown = self._context(before)
        self._pending: list[int] = []
        self._core: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._stream = self._new_stream()

    def push(self, token: int) -> str:
        """The new text; empty while a character is incomplete."""
        if token in self._special_texts:
            return self.flush() + self._special(token)
        self._pending.append(token)
        if self._stream is not None and len(self._pending) < _MAX_PENDING:
            try:
                text = self._stream.step(self._core, token)
            except Exception:
                # bytes that never make a character; `_advance` begins a new stream behind them
                self._stream = None
            else:
                if text is None:
                    return ""
                self._shown, self._pending = self._pending, []
                return str(text)
        text = self._pending_text()
        if text.endswith(_REPLACEMENT) and len(self._pending) < _MAX_PENDING:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """The pending text when no more tokens will come, without an incomplete character."""
        if not self._pending:
            return ""
        text = self._pending_text()
        if text.endswith(_REPLACEMENT):
            text = text.rstrip(_REPLACEMENT) + _REPLACEMENT * self._own_replacements()
        return self._advance(text)

    def _special(self, token: int) -> str:
        """The text of a special token; what follows is decoded as behind it."""
        self._shown = [*self._shown[-_CONTEXT:], token]
        self._stream = self._new_stream()
        return self._special_texts[token]

    def _own_replacements(self) -> int:
        """How many U+FFFD the model itself has written at the end of the pending tokens."""
        token_bytes = TokenBytes(self._tokenizer)
        written = b""
        for token in self._pending:
            if self._decode([token]):  # special tokens have no text
                written += token_bytes.of(token)
        return trailing_replacements(written)

    def _new_stream(self) -> DecodeStream | None:
        """The library's own decoding, from what was shown on."""
        if not isinstance(self._core, Tokenizer):
            return None
        return DecodeStream(ids=self._shown, skip_special_tokens=self._skip_special)

    def _context(self, before: list[int]) -> list[int]:
        """The prompt's last tokens, from the start of a character: half of one would spoil what
        follows.
        """
        for more in range(4):  # a character has at most four bytes
            ids = before[-_CONTEXT - more :]
            if _REPLACEMENT not in self._decode(ids):
                return ids
        return []

    def _pending_text(self) -> str:
        """What the pending tokens add to those before them.

        Where they change the text before them (single bytes that make no character), what they read
        as by themselves.
        """
        before = self._decode(self._shown)
        text = self._decode(self._shown + self._pending)
        if text.startswith(before):
            return text[len(before) :]
        return self._decode(self._pending)

    def _advance(self, text: str) -> str:
        self._shown, self._pending = self._pending, []
        self._stream = self._new_stream()
        return text

    def _decode(self, ids: list[int]) -> str:
        # Clean-up would join " ," to "," and so change text that was shown already.
        return self._tokenizer.decode(
            ids, skip_special_tokens=self._skip_special, clean_up_tokenization_spaces=False
        )


def trailing_replacements(written: bytes) -> int:
    """How many U+FFFD a text ends with, not counting an incomplete character behind them."""
    replacement = _REPLACEMENT.encode()
    whole = written.decode(errors="ignore").encode()
    count = 0
    while whole.endswith(replacement):
        whole = whole.removesuffix(replacement)
        count += 1
    return count
