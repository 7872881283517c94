"""Calls as DeepSeek's models write them: marks around all of them, around each, and in each."""

import re
from enum import Enum

from api.requests.parts.calls import Calls
from api.requests.parts.json_text import JSONBoundary
from api.requests.parts.model import Part, TextPart

CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
CALLS_END = "<｜tool▁calls▁end｜>"
_BEGIN = "<｜tool▁call▁begin｜>"
_END = "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_NAME = r"[\w.-]{1,256}"
# V3 and R1 write the kind, then the name and a fenced object; V3.1 writes the name and the object.
_HEAD = re.compile(
    rf"\s*(?:function{_SEPARATOR}\s*(?P<fenced>{_NAME})\s*```(?:json)?"
    rf"|(?P<bare>{_NAME}){_SEPARATOR})\s*(?=\{{)"
)
_LONGEST_HEAD = 1024  # characters


class _Stage(Enum):
    OUTSIDE = "outside"  # between calls
    HEAD = "head"  # before the arguments
    ARGUMENTS = "arguments"
    TAIL = "tail"  # behind them


class DeepSeekCalls:
    """Keeps the CallBody protocol."""

    def __init__(self, mark: str, calls: Calls) -> None:
        self.rest: str | None = None
        self._mark = mark  # text if no call follows
        self._calls = calls
        self._text = ""  # undecided
        self._stage = _Stage.OUTSIDE
        self._boundary = JSONBoundary()

    def feed(self, text: str) -> list[Part]:
        """See CallBody."""
        self._text += text
        parts: list[Part] = []
        more = True
        while more and self.rest is None:
            match self._stage:
                case _Stage.OUTSIDE:
                    more = self._outside(parts)
                case _Stage.HEAD:
                    more = self._head(parts)
                case _Stage.ARGUMENTS:
                    more = self._arguments(parts)
                case _Stage.TAIL:
                    more = self._tail()
        return parts

    def end(self) -> list[Part]:
        """See CallBody."""
        if self._stage is _Stage.HEAD:
            return [TextPart(self._mark + _BEGIN + self._text)]
        if self._stage is _Stage.OUTSIDE and (self._mark or self._text.strip()):
            return [TextPart(self._mark + self._text)]
        return []

    def _outside(self, parts: list[Part]) -> bool:
        stripped = self._text.lstrip()
        if stripped.startswith(_BEGIN):
            self._text, self._stage = stripped[len(_BEGIN) :], _Stage.HEAD
            return True
        if stripped.startswith(CALLS_END) and not self._mark:
            self.rest = stripped[len(CALLS_END) :]
            return False
        if _BEGIN.startswith(stripped) or (CALLS_END.startswith(stripped) and not self._mark):
            return False
        self._give_up(self._text, parts)
        return False

    def _head(self, parts: list[Part]) -> bool:
        head = _HEAD.match(self._text)
        if head is not None:
            parts.append(self._calls.begin(head["fenced"] or head["bare"]))
            self._mark, self._boundary = "", JSONBoundary()
            self._text, self._stage = self._text[head.end() :], _Stage.ARGUMENTS
            return True
        if _END in self._text or len(self._text) > _LONGEST_HEAD:
            self._give_up(_BEGIN + self._text, parts)
        return False

    def _give_up(self, text: str, parts: list[Part]) -> None:
        """That is no call. The first mark is text, what follows is read as such."""
        if self._mark:
            parts.append(TextPart(self._mark))
        self.rest = text

    def _arguments(self, parts: list[Part]) -> bool:
        text, end = self._text, self._boundary.push(self._text)
        if text[:end]:
            parts.append(self._calls.arguments(text[:end]))
        self._text = "" if end is None else text[end:]
        if end is not None:
            self._stage = _Stage.TAIL
        return end is not None

    def _tail(self) -> bool:
        at = self._text.find(_END)
        if at < 0:
            self._text = self._text[-len(_END) :]
            return False
        self._text, self._stage = self._text[at + len(_END) :], _Stage.OUTSIDE
        return True
