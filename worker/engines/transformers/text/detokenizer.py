"""From token ids to text, one token at a time, without ever showing half a character."""

from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from worker.engines.transformers.text.token_bytes import TokenBytes

_HALF = "\ufffd"  # what decoders put for bytes that are not (yet) UTF-8
_CONTEXT = 6  # tokens of the prompt decoded along, so that the first word keeps its leading space
_PATIENCE = 64  # tokens: a model that emits invalid bytes for ever is shown as it is


class Decodes(Protocol):
    """The part of a Hugging Face tokenizer that is needed here."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        """Text of the ids."""


class Detokenizer:
    """Text of one growing sequence.

    Tokens are decoded together with the few before them and the difference is the new text, because
    what a token reads as depends on its neighbours (leading spaces, characters of several tokens).
    The tokenizers library does the same, four times faster, where the tokenizer is one of its own.
    """

    def __init__(self, tokenizer: Decodes, before: list[int]) -> None:
        self._tokenizer = tokenizer
        self._shown = self._context(before)
        self._pending: list[int] = []
        self._core: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._stream = self._streamed()

    def push(self, token: int) -> str:
        """The new text; empty while a character is incomplete."""
        self._pending.append(token)
        if self._stream is not None and len(self._pending) < _PATIENCE:
            try:
                text = self._stream.step(self._core, token)
            except Exception:
                # bytes that never make a character; the stream is made anew behind this text
                self._stream = None
            else:
                if text is None:
                    return ""
                self._shown, self._pending = self._pending, []
                return str(text)
        text = self._pending_text()
        if text.endswith(_HALF) and len(self._pending) < _PATIENCE:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What is left when no more tokens will come, less an unfinished character."""
        if not self._pending:
            return ""
        text = self._pending_text()
        if text.endswith(_HALF):
            spelling = TokenBytes(self._tokenizer)
            shown = [token for token in self._pending if self._decode([token])]  # no special ones
            own = trailing_replacements(b"".join(map(spelling.of, shown)))
            text = text.rstrip(_HALF) + _HALF * own
        return self._advance(text)

    def _streamed(self) -> DecodeStream | None:
        """The library's own way, from what was shown on."""
        if not isinstance(self._core, Tokenizer):
            return None
        return DecodeStream(ids=self._shown, skip_special_tokens=True)

    def _context(self, before: list[int]) -> list[int]:
        """The prompt's last tokens, from the beginning of a character on: half a one would spoil
        what follows.
        """
        for more in range(4):  # a character has at most four bytes
            ids = before[-_CONTEXT - more :]
            if _HALF not in self._decode(ids):
                return ids
        return []

    def _pending_text(self) -> str:
        """The text of the tokens that were not shown: what they add to those before them, or where
        they change how those read (single bytes that make no character), what they read as by
        themselves.
        """
        before = self._decode(self._shown)
        text = self._decode(self._shown + self._pending)
        return text[len(before) :] if text.startswith(before) else self._decode(self._pending)

    def _advance(self, text: str) -> str:
        self._shown, self._pending = self._pending, []
        self._stream = self._streamed()
        return text

    def _decode(self, ids: list[int]) -> str:
        # Without clean-up: it would join " ," to "," and so change text that was shown already.
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def trailing_replacements(spelled: bytes) -> int:
    """How many U+FFFD of its own a text ends with; bytes of an unfinished character behind them do
    not count.
    """
    own = _HALF.encode()
    whole = spelled.decode(errors="ignore").encode()
    count = 0
    while whole.endswith(own):
        whole = whole.removesuffix(own)
        count += 1
    return count
