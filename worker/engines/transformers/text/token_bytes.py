"""The bytes of single tokens: a token may be part of a character, or begin with a space."""

import functools
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a single byte in sentencepiece's vocabularies
_SPACE = "\u2581"  # a space in them


class TokenBytes:
    """The bytes of a tokenizer's tokens; concatenated, an answer's are its text in UTF-8."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added: dict[int, str] = {}
        for number, token in tokenizer.added_tokens_decoder.items():
            self._added[number] = str(token)
        core = getattr(tokenizer, "backend_tokenizer", None)
        decoder = getattr(core, "decoder", None)
        description = ""
        if decoder is not None:
            description = decoder.__getstate__().decode()
        self._byte_level = "ByteLevel" in description
        self._sentencepiece = _SPACE in description

    def of(self, token: int) -> bytes:
        """The token's bytes; none for an id that the tokenizer does not know."""
        if token in self._added:
            return self._added[token].encode()
        name = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return b""
        if self._byte_level:
            letters = _byte_level_letters()
            return b"".join(letters.get(letter) or letter.encode() for letter in name)
        if not self._sentencepiece:
            return str(self._tokenizer.decode([token])).encode()
        byte = _BYTE.fullmatch(name)
        if byte:
            return bytes.fromhex(byte[1])
        return str(name.replace(_SPACE, " ")).encode()


@functools.cache
def _byte_level_letters() -> dict[str, bytes]:
    """The byte that each letter of a byte-level vocabulary stands for, as GPT-2 defines it.

    Printable bytes stand for themselves, the others for the letters from U+0100 on.
    """
    letters: dict[str, bytes] = {}
    next_letter = 0x100
    for byte in range(0x100):
        printable = 0x21 <= byte < 0x7F or 0xA1 <= byte < 0xAD or byte >= 0xAE
        if printable:
            letters[chr(byte)] = bytes([byte])
        else:
            letters[chr(next_letter)] = bytes([byte])
            next_letter += 1
    return letters
