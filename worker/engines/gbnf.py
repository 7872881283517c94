"""Grammars in llama.cpp's GBNF, which vLLM's clients send, too, as Lark. Pure."""

import re

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

MAX_SOURCE = 32 * 1024  # characters: the library reads one at a time, and all rules for each
MAX_RULES = 256
_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_ESCAPE = re.compile(r"\\(?:(\\)|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_SPECIAL = frozenset('"\\[]^-/')  # in a literal or in a class of characters


class InvalidGBNF(ValueError):
    """The message says what is wrong."""


def is_gbnf(source: str) -> bool:
    """Whether its rules are written so; Lark's have a colon alone."""
    return _RULE.search(source) is not None


def as_lark(source: str) -> str:
    """The same grammar in Lark. Raises InvalidGBNF."""
    if len(source) > MAX_SOURCE or len(_RULE.findall(source)) > MAX_RULES:
        raise InvalidGBNF(
            f"it has more than {MAX_SOURCE} characters or {MAX_RULES} rules; use Lark"
        )
    try:
        return str(gbnf_to_lark(_ESCAPE.sub(_character, source)))
    except GbnfToLarkError as error:
        raise InvalidGBNF(str(error)) from error
    except RecursionError as error:
        raise InvalidGBNF("too many levels") from error
    except Exception as error:
        # what is missing among the rules is told by a bare Exception; fate: the request is refused
        raise InvalidGBNF(str(error)) from error


def _character(escape: re.Match[str]) -> str:
    """The character itself: the library writes escapes that its own parser does not take."""
    digits = escape[2] or escape[3] or escape[4]
    if digits is None:
        return escape[0]
    number = int(digits, 16)
    if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
        raise InvalidGBNF(f"{escape[0]} is no character")
    character = chr(number)
    if character.isprintable() and character not in _SPECIAL:
        return character
    return f"\\x{number:02x}" if number < 0x80 else character
