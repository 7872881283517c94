"""Calls written in Python, in a block of code, as Gemma 3 was trained to: `f(city="Rome")`."""

import json
import math
import re
from typing import Any

from api.requests.parts.calls import Calls
from api.requests.parts.model import Part, TextPart
from api.requests.parts.parameters import Tools, properties

_CLOSE = "```"
_NAME = re.compile(r"[^\W\d]\w{0,127}(?:\.[^\W\d]\w{0,127}){0,4}")
_ASSIGNMENT = re.compile(r"[^\W\d]\w*\s*=\s*(?!=)")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|\'\'\'(?:[^\\]|\\.)*?\'\'\'|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'',
    re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\(?:(?P<code>x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|(?P<letter>.))", re.DOTALL
)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "\n": ""}
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_CONSTANTS = {
    "True": True,
    "False": False,
    "None": None,
    "true": True,
    "false": False,
    "null": None,
}
_BRACKETS = {"[": "]", "(": ")"}
_MAX_LEVELS = 32
_MAX_FENCES = 16  # that are tried as the end of a block
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which cannot be sent


class _UnclosedText(ValueError):
    """A text in quotes has no end yet."""


class PythonCalls:
    """Keeps the CallBody protocol. A block is read as a whole: arguments may lack their names."""

    def __init__(self, mark: str, calls: Calls, tools: Tools) -> None:
        self.rest: str | None = None
        self._mark = mark
        self._calls = calls
        self._tools = tools
        self._text = ""
        self._searched = 0
        self._fences = 0

    def feed(self, text: str) -> list[Part]:
        """See CallBody."""
        self._text += text
        at = self._text.find(_CLOSE, self._searched)
        while at >= 0:
            self._fences += 1
            self._searched = at + len(_CLOSE)
            parts = self._read_block(at)
            if parts is not None:
                self.rest = self._text[self._searched :]
                return parts
            at = self._text.find(_CLOSE, self._searched)
        self._searched = max(self._searched, len(self._text) - len(_CLOSE) + 1)
        return []

    def end(self) -> list[Part]:
        """See CallBody."""
        try:
            return self._read(self._text)
        except ValueError:
            return [TextPart(self._mark + self._text)]

    def _read_block(self, end: int) -> list[Part] | None:
        """What stands before a fence at `end`; None if the fence is part of a text, perhaps."""
        try:
            return self._read(self._text[:end])
        except _UnclosedText:
            if self._fences < _MAX_FENCES:
                return None
        except ValueError:
            pass
        return [TextPart(self._mark + self._text[: end + len(_CLOSE)])]

    def _read(self, code: str) -> list[Part]:
        """The calls in it. Raises ValueError if it is anything else."""
        found = _Reader(code, self._tools).calls()
        parts: list[Part] = []
        for name, arguments in found:
            parts += [self._calls.begin(name), self._calls.arguments(arguments)]
        return parts


class _Reader:
    """Reads calls with literal arguments. Raises ValueError for anything else."""

    def __init__(self, code: str, tools: Tools) -> None:
        self._code = code
        self._at = 0
        self._tools = tools

    def calls(self) -> list[tuple[str, str]]:
        """Names and arguments, one call a line or with `;` between."""
        found = [self._statement()]
        self._skip(" \t\r\n;")
        while self._at < len(self._code):
            found.append(self._statement())
            self._skip(" \t\r\n;")
        return found

    def _statement(self) -> tuple[str, str]:
        """A call, perhaps printed or assigned to a name."""
        self._skip()
        assignment = _ASSIGNMENT.match(self._code, self._at)
        if assignment is not None:
            self._at = assignment.end()
        name = self._name()
        if name == "print" and name not in self._tools:
            self._expect("(")
            self._skip()
            call = self._call(self._name())
            self._expect(")")
            return call
        return self._call(name)

    def _name(self) -> str:
        match = _NAME.match(self._code, self._at)
        if match is None:
            raise ValueError("no name")
        self._at = match.end()
        return match[0]

    def _call(self, name: str) -> tuple[str, str]:
        known = name if name in self._tools else name.rsplit(".", 1)[-1]
        if known not in self._tools:
            raise ValueError("no tool")
        names = list(properties(self._tools, known))
        values: dict[str, Any] = {}
        self._expect("(")
        while not self._takes(")"):
            if values:
                self._expect(",")
                if self._takes(")"):
                    break
            key = self._keyword()
            if key is None:
                if len(values) >= len(names):
                    raise ValueError("an argument without a name")
                key = names[len(values)]
            values[key] = self._value()
        return known, json.dumps(values, ensure_ascii=False)

    def _keyword(self) -> str | None:
        self._skip()
        match = _ASSIGNMENT.match(self._code, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match[0].rstrip("= \t\r\n")

    def _value(self, level: int = 0) -> Any:
        if level > _MAX_LEVELS:
            raise ValueError("too many levels")
        self._skip()
        first = self._code[self._at : self._at + 1]
        if first in _BRACKETS:
            return self._list(_BRACKETS[first], level)
        if first == "{":
            return self._object(level)
        if match := _STRING.match(self._code, self._at):
            self._at = match.end()
            return _text(match[0])
        if match := _NUMBER.match(self._code, self._at):
            self._at = match.end()
            return _number(match[0].replace("_", ""))
        if match := _NAME.match(self._code, self._at):
            self._at = match.end()
            if match[0] in _CONSTANTS:
                return _CONSTANTS[match[0]]
        raise _UnclosedText if first and first in "\"'" else ValueError("no value")

    def _list(self, close: str, level: int) -> list[Any]:
        self._at += 1
        values: list[Any] = []
        while not self._takes(close):
            if values:
                self._expect(",")
                if self._takes(close):
                    break
            values.append(self._value(level + 1))
        return values

    def _object(self, level: int) -> dict[str, Any]:
        self._at += 1
        values: dict[str, Any] = {}
        while not self._takes("}"):
            if values:
                self._expect(",")
                if self._takes("}"):
                    break
            key = self._value(level + 1)
            self._expect(":")
            values[str(key)] = self._value(level + 1)
        return values

    def _expect(self, expected: str) -> None:
        if not self._takes(expected):
            raise ValueError(f"no {expected}")

    def _takes(self, expected: str) -> bool:
        self._skip()
        if not self._code.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def _skip(self, characters: str = " \t\r\n") -> None:
        while self._code[self._at : self._at + 1] and self._code[self._at] in characters:
            self._at += 1


def _text(literal: str) -> str:
    """The text of a string in Python's or JSON's quotes."""
    try:
        # its escapes are Python's, but for `/` and surrogates
        return _SURROGATE.sub("\ufffd", str(json.loads(literal)))
    except ValueError:
        pass
    quote = 3 if literal[:3] in ('"""', "'''") else 1
    return _ESCAPE.sub(_unescaped, literal[quote:-quote])


def _unescaped(escape: re.Match[str]) -> str:
    code = escape["code"]
    if code is None:
        return _ESCAPED.get(escape["letter"], escape[0])
    number = int(code[1:], 16)
    return chr(number) if number < 0xD800 or 0xDFFF < number <= 0x10FFFF else "\ufffd"


def _number(literal: str) -> int | float:
    try:
        return int(literal)
    except ValueError:
        value = float(literal)
    if not math.isfinite(value):
        raise ValueError("too large")
    return value
