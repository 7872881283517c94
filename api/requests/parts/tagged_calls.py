"""Calls whose arguments stand between marks of their own, as Qwen3-Coder and GLM write them."""

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from api.requests.parts.calls import CallBody, Calls
from api.requests.parts.json_calls import JSONCalls
from api.requests.parts.marks import first_mark, undecided
from api.requests.parts.model import Part, TextPart
from api.requests.parts.parameters import Tools, json_value, properties
from broker.plain_parameters import is_plain_text

_NAME_CHARACTERS = r"[\w.-]{1,256}"
_LONGEST_KEY = 256  # characters
_LONGEST_HEAD = 1024  # a model may write line feeds for ever


@dataclass(frozen=True, slots=True)
class Tags:
    """The marks of one format. `lines`: a line feed on both sides of a value is not its own."""

    name: tuple[str, str]
    key: tuple[str, str]
    value: tuple[str, str]
    end: str  # behind the last value; empty: the closing mark alone
    close: str
    lines: bool = False


QWEN3_CODER = Tags(
    name=("<function=", ">"),
    key=("<parameter=", ">"),
    value=("", "</parameter>"),
    end="</function>",
    close="</tool_call>",
    lines=True,
)
GLM = Tags(
    name=("", ""),
    key=("<arg_key>", "</arg_key>"),
    value=("<arg_value>", "</arg_value>"),
    end="",
    close="</tool_call>",
)


class _Stage(Enum):
    HEAD = "head"  # the name comes
    BETWEEN = "between"  # a parameter comes, or the end
    KEY = "key"
    OPENING = "opening"  # of a value
    VALUE = "value"
    CLOSING = "closing"  # the closing mark may come
    DONE = "done"


class TaggedOrJSON:
    """Keeps the CallBody protocol: finds out which of the two a model writes behind the mark."""

    def __init__(self, mark: str, calls: Calls, tools: Tools, tags: Tags) -> None:
        self._way: CallBody | None = None
        self._text = ""
        self._tagged = TaggedCall(mark, calls, tools, tags)
        self._json = JSONCalls(mark, calls, close=tags.close, lists=True)

    @property
    def rest(self) -> str | None:
        """See CallBody."""
        return self._way.rest if self._way is not None else None

    def feed(self, text: str) -> list[Part]:
        """See CallBody."""
        self._text += text
        if self._way is None and self._text.strip():
            self._way = self._json if self._text.lstrip()[0] in "{[" else self._tagged
        if self._way is None:
            return []
        text, self._text = self._text, ""
        return self._way.feed(text)

    def end(self) -> list[Part]:
        """See CallBody."""
        way = self._way or self._tagged
        return way.feed(self._text) + way.end()


class TaggedCall:
    """Keeps the CallBody protocol. Texts are streamed; other values are read as a whole."""

    def __init__(self, mark: str, calls: Calls, tools: Tools, tags: Tags) -> None:
        self.rest: str | None = None
        self._mark = mark
        self._calls = calls
        self._tools = tools
        self._tags = tags
        self._stage = _Stage.HEAD
        self._text = ""  # undecided
        self._searched = 0  # characters of it without the end of a value
        self._schemas: dict[str, Any] = {}
        self._parameters = 0
        self._schema: Any = None  # of the present value
        self._streamed = False  # it is a text
        self._quote_due = False  # which has not begun in the arguments
        self._head = _head_of(tags, begun=mark == tags.name[0])

    def feed(self, text: str) -> list[Part]:
        """See CallBody."""
        self._text += text
        parts: list[Part] = []
        more = True
        while more and self.rest is None:
            more = self._step(parts)
        return parts

    def end(self) -> list[Part]:
        """See CallBody. A call that ends between two parameters has all that it will have."""
        if self._stage is _Stage.HEAD:
            return [TextPart(self._mark + self._text)]
        if self._stage is _Stage.BETWEEN:
            return [self._finished()]
        if self._stage is _Stage.VALUE and self._streamed and self._text:
            return [self._calls.arguments(self._more_text(self._text))]
        return []

    def _step(self, parts: list[Part]) -> bool:
        """Reads on. False: more text must come."""
        if self._stage is _Stage.DONE:
            return False
        readers = {
            _Stage.HEAD: self._read_head,
            _Stage.BETWEEN: self._read_between,
            _Stage.KEY: self._read_key,
            _Stage.OPENING: self._read_opening,
            _Stage.VALUE: self._read_value,
            _Stage.CLOSING: self._read_closing,
        }
        return readers[self._stage](parts)

    def _read_head(self, parts: list[Part]) -> bool:
        found = self._head.whole.match(self._text, 0, _LONGEST_HEAD)
        if found is not None:
            name = found["name"]
            parts.append(self._calls.begin(name))
            self._schemas = properties(self._tools, name)
            self._text, self._stage = self._text[found.end() :], _Stage.BETWEEN
            return True
        if len(self._text) < _LONGEST_HEAD and self._head.may_become(self._text):
            return False
        parts.append(TextPart(self._mark))
        self.rest, self._stage = self._text, _Stage.DONE
        return False

    def _read_between(self, parts: list[Part]) -> bool:
        stripped = self._text.lstrip()
        begin, ends = self._tags.key[0], (self._tags.end or self._tags.close, self._tags.close)
        if stripped.startswith(begin):
            self._text, self._stage = stripped[len(begin) :], _Stage.KEY
            return True
        if any(mark.startswith(stripped) for mark in (begin, *ends)) and stripped not in ends:
            self._text = stripped
            return False
        # whatever else follows is no part of the call
        parts.append(self._finished())
        self._text, self._stage = stripped.removeprefix(ends[0]), _Stage.CLOSING
        if stripped.startswith(self._tags.close):
            self._text = stripped.removeprefix(self._tags.close)
            self._finish_reading()
        return True

    def _read_key(self, parts: list[Part]) -> bool:
        end = self._tags.key[1]
        at = self._text.find(end)
        if at < 0 and len(self._text) <= _LONGEST_KEY:
            return False
        if at < 0:  # no name of a parameter
            parts.append(self._finished())
            self._text = self._tags.key[0] + self._text
            self._finish_reading()
            return True
        key, self._text = self._text[:at].strip(), self._text[at + len(end) :]
        self._schema = self._schemas.get(key)
        self._streamed = is_plain_text(self._schema)
        before = ", " if self._parameters else "{"
        self._parameters += 1
        parts.append(self._calls.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: "))
        self._stage = _Stage.OPENING
        return True

    def _read_opening(self, _: list[Part]) -> bool:
        """The mark before a value, or its line feed."""
        begin = self._tags.value[0]
        if begin:
            stripped = self._text.lstrip()
            if len(stripped) < len(begin) and begin.startswith(stripped):
                self._text = stripped
                return False
            self._text = stripped.removeprefix(begin)
        if self._tags.lines:
            if not self._text:
                return False
            self._text = self._text.removeprefix("\n")
        self._stage = _Stage.VALUE
        self._quote_due = self._streamed
        return True

    def _read_value(self, parts: list[Part]) -> bool:
        end = self._tags.value[1]
        ends = (f"\n{end}", end) if self._tags.lines else (end,)
        if not self._streamed:
            return self._read_whole_value(parts, ends)
        found = first_mark(self._text, ends)
        if found is None:
            certain = len(self._text) - undecided(self._text, ends)
        else:
            certain = found[0]
        written = self._more_text(self._text[:certain])
        if found is not None:
            written += '"'
            certain += len(found[1])
            self._stage = _Stage.BETWEEN
        if written:
            parts.append(self._calls.arguments(written))
        self._text = self._text[certain:]
        return found is not None

    def _more_text(self, text: str) -> str:
        """More of a text, inside a JSON string that this may begin."""
        begin, self._quote_due = '"' * self._quote_due, False
        return begin + json.dumps(text, ensure_ascii=False)[1:-1]

    def _read_whole_value(self, parts: list[Part], ends: tuple[str, ...]) -> bool:
        found = first_mark(self._text[self._searched :], ends)
        if found is None:
            self._searched = max(0, len(self._text) - max(map(len, ends)))
            return False
        at, mark = self._searched + found[0], found[1]
        self._searched = 0
        parts.append(self._calls.arguments(json_value(self._text[:at], self._schema)))
        self._text, self._stage = self._text[at + len(mark) :], _Stage.BETWEEN
        return True

    def _read_closing(self, _: list[Part]) -> bool:
        stripped, close = self._text.lstrip(), self._tags.close
        if len(stripped) < len(close) and close.startswith(stripped):
            self._text = stripped
            return False
        self._text = stripped.removeprefix(close)
        self._finish_reading()
        return True

    def _finish_reading(self) -> None:
        self.rest, self._stage = self._text, _Stage.DONE

    def _finished(self) -> Part:
        """The end of the arguments."""
        return self._calls.arguments("}" if self._parameters else "{}")


@dataclass(frozen=True, slots=True)
class _Head:
    """The name, and what stands around it."""

    whole: re.Pattern[str]
    begin: str
    partial: re.Pattern[str]

    def may_become(self, text: str) -> bool:
        stripped = text.lstrip()
        if len(stripped) < len(self.begin):
            return self.begin.startswith(stripped)
        return (
            stripped.startswith(self.begin)
            and self.partial.fullmatch(stripped, len(self.begin)) is not None
        )


def _head_of(tags: Tags, *, begun: bool) -> _Head:
    """`begun`: the mark that was found is the beginning of the name."""
    begin, end = tags.name
    begin = "" if begun else begin
    if end:
        whole = rf"\s*{re.escape(begin)}(?P<name>{_NAME_CHARACTERS}){re.escape(end)}"
        return _Head(re.compile(whole), begin, re.compile(rf"(?:{_NAME_CHARACTERS})?"))
    follows = "|".join(re.escape(mark) for mark in (tags.key[0], tags.close))
    whole = rf"\s*(?P<name>{_NAME_CHARACTERS})\s*(?={follows})"
    partial = "|".join(_prefixes(tags.key[0]) + _prefixes(tags.close))
    return _Head(
        re.compile(whole), begin, re.compile(rf"(?:{_NAME_CHARACTERS}(?:\s*(?:{partial})?)?)?")
    )


def _prefixes(mark: str) -> list[str]:
    """Longest first, all but the mark itself."""
    return [re.escape(mark[:length]) for length in range(len(mark) - 1, 0, -1)]
