"""Calls as Gemma's newer models write them: `call:NAME{key:<escape>text<escape>,other:5}`."""

import json
import re
from typing import Any

from api.requests.parts.calls import Calls
from api.requests.parts.model import Part, TextPart

_NAME = re.compile(r"\s*call:([\w.-]{1,256})(?=\{)")
_KEY = re.compile(r"\s*([^\s:,{}\[\]]+)\s*:")
_BARE = re.compile(r"[^,{}\[\]]+")
_MAX_LEVELS = 32


class GemmaCall:
    """Keeps the CallBody protocol. A call is read as a whole, as its values are not yet JSON."""

    def __init__(self, mark: str, calls: Calls, *, close: str, quote: str) -> None:
        """`quote`: around texts."""
        self.rest: str | None = None
        self._mark = mark
        self._calls = calls
        self._close = close
        self._quote = quote
        self._text = ""

    def feed(self, text: str) -> list[Part]:
        """See CallBody."""
        searched = max(0, len(self._text) - len(self._close))
        self._text += text
        at = self._text.find(self._close, searched)
        while at >= 0 and self._text.count(self._quote, 0, at) % 2:  # inside a text
            at = self._text.find(self._close, at + 1)
        if at < 0:
            return []
        self.rest = self._text[at + len(self._close) :]
        return self._call(self._text[:at]) or [TextPart(self._mark + self._text[:at])]

    def end(self) -> list[Part]:
        """See CallBody."""
        return self._call(self._text) or [TextPart(self._mark + self._text)]

    def _call(self, text: str) -> list[Part]:
        """The call; nothing if it is none."""
        name = _NAME.match(text)
        if name is None:
            return []
        reader = _Reader(text, name.end(), self._quote)
        try:
            arguments = reader.value()
        except ValueError:
            return []
        encoded = json.dumps(arguments, ensure_ascii=False)
        return [self._calls.begin(name[1]), self._calls.arguments(encoded)]


class _Reader:
    """Reads values from `at` on. Raises ValueError for what is none."""

    def __init__(self, text: str, at: int, quote: str) -> None:
        self._text = text
        self._at = at
        self._quote = quote

    def value(self, level: int = 0) -> Any:
        """The value at the present place."""
        if level > _MAX_LEVELS:
            raise ValueError("too many levels")
        self._skip_space()
        if self._takes("{"):
            return self._object(level)
        if self._takes("["):
            return self._list(level)
        if self._takes(self._quote):
            end = self._text.index(self._quote, self._at)
            text, self._at = self._text[self._at : end], end + len(self._quote)
            return text
        return self._bare()

    def _object(self, level: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not self._takes("}"):
            if values and not self._takes(","):
                raise ValueError("no comma")
            self._skip_space()
            key = self._key()
            values[key] = self.value(level + 1)
            self._skip_space()
        return values

    def _list(self, level: int) -> list[Any]:
        values: list[Any] = []
        self._skip_space()
        while not self._takes("]"):
            if values and not self._takes(","):
                raise ValueError("no comma")
            values.append(self.value(level + 1))
            self._skip_space()
        return values

    def _key(self) -> str:
        if self._takes(self._quote):
            end = self._text.index(self._quote, self._at)
            key, self._at = self._text[self._at : end], end + len(self._quote)
            if not self._takes(":"):
                raise ValueError("no colon")
            return key
        match = _KEY.match(self._text, self._at)
        if match is None:
            raise ValueError("no key")
        self._at = match.end()
        return match[1].strip("\"'")

    def _bare(self) -> Any:
        match = _BARE.match(self._text, self._at)
        if match is None:
            raise ValueError("no value")
        self._at = match.end()
        word = match[0].strip()
        try:
            return json.loads(word)
        except ValueError:
            return word

    def _takes(self, expected: str) -> bool:
        if not self._text.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def _skip_space(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
