"""What single tokens stand for, in bytes: a token may be a part of a character, or begin with a space."""

import functools
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how sentencepiece's vocabularies write a single byte
_SPACE = "\u2581"  # and a space


class TokenBytes:
    """The bytes of a tokenizer's tokens; those of an answer's tokens in a row are its text in UTF-8."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {
            number: str(token) for number, token in tokenizer.added_tokens_decoder.items()
        }
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        told = decoder.__getstate__().decode() if decoder is not None else ""
        self._by_letters = "ByteLevel" in told
        self._by_pieces = _SPACE in told

    def of(self, token: int) -> bytes:
        """Its bytes; none for an id that the tokenizer does not know."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self._by_letters:
            letters = _letters()
            return b"".join(letters.get(letter) or letter.encode() for letter in piece)
        if not self._by_pieces:
            return str(self._tokenizer.decode([token])).encode()
        byte = _BYTE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace(_SPACE, " ").encode()


@functools.cache
def _letters() -> dict[str, bytes]:
    """The byte that each letter of a byte-level vocabulary stands for: its own if that can be seen."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = (byte for byte in range(0x100) if byte not in seen)
    others = {chr(0x100 + number): bytes([byte]) for number, byte in enumerate(unseen)}
    return {chr(byte): bytes([byte]) for byte in seen} | others
