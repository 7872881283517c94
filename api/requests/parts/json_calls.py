"""Calls written as JSON: `{"name": ..., "arguments": {...}}`, one or several."""

import json
import re
from enum import Enum
from typing import Any

import msgspec

from api.requests.parts.calls import Calls
from api.requests.parts.json_text import JSONBoundary
from api.requests.parts.model import Part, TextPart

_MEMBER = r'"(?:type|id)"\s*:\s*"[^"\\]*"\s*,\s*'
_NAME = r'"name"\s*:\s*"(?P<name>[^"\\]{1,256})"'
# An object up to the value of its arguments, with the keys in the order in which models write them.
_HEAD = re.compile(
    rf'\s*\{{\s*(?:{_MEMBER})*{_NAME}\s*,\s*(?:{_MEMBER})*"(?:arguments|parameters)"\s*:\s*(?=\S)'
)
_NAMED = re.compile(rf"\s*\{{\s*(?:{_MEMBER})*{_NAME}")
# What may still become an object that begins with the name or the type.
_PREFIX = re.compile(
    r'\s*\{\s*(?:"(?:n|na|nam|name|t|ty|typ|type)?|"(?:name|type)"\s*(?::.*)?)?', re.DOTALL
)
_LONGEST_HEAD = 4096  # characters


class _Stage(Enum):
    HEAD = "head"  # before the arguments
    ARGUMENTS = "arguments"
    TAIL = "tail"  # behind them
    DONE = "done"
    NO_CALL = "no call"  # `text` has what was read


class CallObject:
    """Reads one call. `names`: if given, other objects are no calls, which is seen early."""

    def __init__(self, calls: Calls, names: frozenset[str] | None) -> None:
        self.text = ""  # undecided; at the end, what is behind the object
        self.stage = _Stage.HEAD
        self._calls = calls
        self._names = names
        self._whole = JSONBoundary()  # of the object, while it is undecided
        self._inner = JSONBoundary()  # of the arguments, then of the rest of the object

    @property
    def over(self) -> bool:
        """Whether the object has ended, or is no call."""
        return self.stage in (_Stage.DONE, _Stage.NO_CALL)

    def feed(self, text: str) -> list[Part]:
        """What is certain now."""
        parts: list[Part] = []
        if self.stage is _Stage.HEAD:
            self._head(text, parts)
            text = ""
        else:
            self.text += text
        if self.stage is _Stage.ARGUMENTS:
            self._arguments(parts)
        if self.stage is _Stage.TAIL:
            self._tail()
        return parts

    def _head(self, text: str, parts: list[Part]) -> None:
        before = len(self.text)
        self.text += text
        if not "{".startswith(self.text.lstrip()[:1]):
            self.stage = _Stage.NO_CALL
            return
        if before <= _LONGEST_HEAD:
            self._match(parts)
        if self.stage is not _Stage.HEAD:
            return
        end = self._whole.push(text)
        if end is not None:
            self._read_whole(before + end, parts)

    def _match(self, parts: list[Part]) -> None:
        """Begins the call as soon as its name and the beginning of its arguments are there."""
        if self._names is not None and not self._may_be_known(self._names):
            self.stage = _Stage.NO_CALL
            return
        head = _HEAD.match(self.text[:_LONGEST_HEAD])
        if head is None or self.text[head.end()] != "{":
            return
        self.stage = _Stage.ARGUMENTS
        self.text = self.text[head.end() :]
        parts.append(self._calls.begin(head["name"]))

    def _may_be_known(self, names: frozenset[str]) -> bool:
        named = _NAMED.match(self.text)
        if named is not None:
            return named["name"] in names
        return _PREFIX.fullmatch(self.text) is not None

    def _arguments(self, parts: list[Part]) -> None:
        text, end = self.text, self._inner.push(self.text)
        if end is None:
            end = len(text)
        else:
            self.stage, self._inner = _Stage.TAIL, JSONBoundary()
            self._inner.depth = 1
        self.text = text[end:]
        if end:
            parts.append(self._calls.arguments(text[:end]))

    def _tail(self) -> None:
        end = self._inner.push(self.text)
        if end is None:
            self.text = ""
        else:
            self.stage, self.text = _Stage.DONE, self.text[end:]

    def _read_whole(self, end: int, parts: list[Part]) -> None:
        """The object has ended, and is written in another way than most."""
        call = _as_call(self.text[:end])
        if call is None or (self._names is not None and call[0] not in self._names):
            self.stage = _Stage.NO_CALL
            return
        name, arguments = call
        self.stage, self.text = _Stage.DONE, self.text[end:]
        parts += [self._calls.begin(name), self._calls.arguments(arguments)]


def _as_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a whole object; None if it is no call."""
    try:
        value: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None:
        return value["name"], "{}"
    if isinstance(arguments, str):  # JSON inside JSON
        return value["name"], arguments or "{}"
    return value["name"], json.dumps(arguments, ensure_ascii=False)


class _Place(Enum):
    OPEN = "open"  # right behind the mark
    ITEM = "item"  # an object comes
    AFTER = "after"  # one has ended
    CLOSE = "close"  # the closing mark may come


class JSONCalls:
    """Keeps the CallBody protocol: an object, several behind each other, or a list of them."""

    def __init__(
        self,
        mark: str,
        calls: Calls,
        *,
        names: frozenset[str] | None = None,
        close: str = "",
        separator: str = "",
        lists: bool = False,
    ) -> None:
        """`close`: the mark behind; `separator`: between objects, where that is no list."""
        self.rest: str | None = None
        self._calls = calls
        self._names = names
        self._close = close
        self._separator = separator
        self._lists = lists
        self._in_list = False
        self._place = _Place.OPEN
        self._mark = mark  # text if no call follows, as is
        self._before = ""  # what was read behind it
        self._text = ""  # between objects
        self._object: CallObject | None = None

    def feed(self, text: str) -> list[Part]:
        """See CallBody."""
        parts: list[Part] = []
        self._text += text
        more = True
        while more and self.rest is None:
            more = self._between() if self._object is None else self._inside(self._object, parts)
        return parts

    def end(self) -> list[Part]:
        """See CallBody."""
        text = self._text
        if self._object is not None:
            text = self._object.text if self._object.stage is _Stage.HEAD else ""
        text = self._mark + self._before + text
        return [TextPart(text)] if text.strip() else []

    def _inside(self, call: CallObject, parts: list[Part]) -> bool:
        text, self._text = self._text, ""
        parts += call.feed(text)
        if call.stage is not _Stage.HEAD and call.stage is not _Stage.NO_CALL:
            self._mark = self._before = ""
        if not call.over:
            return False
        self._text, self._object, self._place = call.text, None, _Place.AFTER
        if call.stage is _Stage.NO_CALL:
            if self._mark:
                parts.append(TextPart(self._mark))
            self.rest = self._before + self._text
        return True

    def _between(self) -> bool:
        """Looks for the next object, or the end. False: more text must come."""
        stripped = self._text.lstrip()
        if not stripped:
            return False
        if self._place is _Place.OPEN:
            self._open(stripped)
        elif self._place is _Place.AFTER:
            self._after(stripped)
        elif self._place is _Place.CLOSE:
            return self._end(stripped)
        if self._place is _Place.ITEM:
            self._object = CallObject(self._calls, self._names)
        return True

    def _open(self, stripped: str) -> None:
        self._place = _Place.ITEM
        if self._lists and stripped.startswith("["):
            self._in_list = True
            self._before += self._text[: -len(stripped)] + "["
            self._text = stripped[1:]

    def _after(self, stripped: str) -> None:
        separator = "," if self._in_list else self._separator
        if separator and stripped.startswith(separator):
            self._place, self._text = _Place.ITEM, stripped[len(separator) :]
            return
        self._place = _Place.CLOSE
        if self._in_list and stripped.startswith("]"):
            stripped = stripped[1:]
        self._text = stripped

    def _end(self, stripped: str) -> bool:
        if self._close and len(stripped) < len(self._close) and self._close.startswith(stripped):
            return False
        self.rest = stripped.removeprefix(self._close)
        return True
