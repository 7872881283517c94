"""Calls of tools in an answer's text, whatever the format: text, marks, and what is behind them."""

import hashlib
from typing import Protocol

from api.requests.parts.marks import first_mark, trailing_space, undecided
from api.requests.parts.model import CallArguments, CallBegins, Part, TextPart
from api.requests.parts.parameters import Tools

_ID_CHARACTERS = 24


def call_id(request_id: str, index: int) -> str:
    """The id of an answer's call: the same whoever reads the answer, and however often."""
    digest = hashlib.sha256(f"{request_id} {index}".encode()).hexdigest()
    return f"call_{digest[:_ID_CHARACTERS]}"


class Calls:
    """Numbers the calls of one answer."""

    def __init__(self, request_id: str) -> None:
        self.count = 0
        self._request_id = request_id

    def begin(self, name: str) -> CallBegins:
        """The next call."""
        index, self.count = self.count, self.count + 1
        return CallBegins(index, call_id(self._request_id, index), name)

    def arguments(self, text: str) -> CallArguments:
        """More of the latest call's arguments."""
        return CallArguments(self.count - 1, text)


class CallBody(Protocol):
    """Reads what follows a mark. What turns out to be no call is text."""

    @property
    def rest(self) -> str | None:
        """The text behind the calls, once they are over."""

    def feed(self, text: str) -> list[Part]:
        """What is certain now."""

    def end(self) -> list[Part]:
        """No more text comes."""


class CallFormat(Protocol):
    """How a model writes calls."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Each opens a call."""

    @property
    def bare(self) -> bool:
        """An answer that begins with an object may be a call without a mark."""

    def body(self, mark: str, calls: Calls, tools: Tools) -> CallBody:
        """The reader of what follows the mark; empty: of a bare object. `tools`: by name."""


class CallParser:
    """Keeps the PartParser protocol. White space around calls is left out."""

    def __init__(
        self, call_format: CallFormat, request_id: str, tools: Tools, *, must_call: bool = False
    ) -> None:
        """`must_call`: the answer is nothing but calls, so the beginning of one is no text."""
        self._format = call_format
        self._tools = tools
        self._calls = Calls(request_id)
        self._text = ""  # not decided yet
        self._body: CallBody | None = None
        self._begins = True  # the answer has had nothing but white space
        self._after_call = False
        self._must_call = must_call
        self._mark = ""  # that opened the present call

    def feed(self, text: str) -> list[Part]:
        """See PartParser."""
        self._text += text
        parts: list[Part] = []
        more = bool(self._text)
        while more:
            more = self._read_text(parts) if self._body is None else self._read_body(parts)
        return parts

    def end(self, *, cut: bool = False) -> list[Part]:
        """See PartParser. Of a call that was cut before its arguments nothing is told."""
        text, self._text = self._text, ""
        if self._body is not None:
            parts = self._body.end()
            if not self._must_call and not (cut and self._mark):
                return parts
            return [part for part in parts if not isinstance(part, TextPart)]
        if self._must_call:
            return []
        if self._after_call:
            text = text.strip()
        elif self._calls.count:
            text = text.rstrip()
        return [TextPart(text)] if text else []

    def _read_text(self, parts: list[Part]) -> bool:
        """Moves to the next mark. False: more text must come."""
        if self._begins and self._format.bare:
            stripped = self._text.lstrip()
            if not stripped:
                return False
            if stripped.startswith("{"):
                self._open("", stripped)
                return True
        found = first_mark(self._text, self._format.marks)
        if found is None:
            certain = len(self._text) - undecided(self._text, self._format.marks)
            certain -= trailing_space(self._text[:certain])
            self._show(self._text[:certain], parts)
            self._text = self._text[certain:]
            return False
        at, mark = found
        self._show(self._text[:at].rstrip(), parts)
        self._open(mark, self._text[at + len(mark) :])
        return True

    def _open(self, mark: str, text: str) -> None:
        self._body = self._format.body(mark, self._calls, self._tools)
        self._text, self._begins, self._mark = text, False, mark

    def _read_body(self, parts: list[Part]) -> bool:
        """Gives the call its text. False: more must come."""
        if self._body is None:
            return False
        text, self._text = self._text, ""
        for part in self._body.feed(text):
            parts.append(part)
            self._after_call = not isinstance(part, TextPart)
        if self._body.rest is None:
            return False
        self._text, self._body = self._body.rest, None
        return bool(self._text)

    def _show(self, text: str, parts: list[Part]) -> None:
        if self._after_call:
            text = text.lstrip()
        if text:
            parts.append(TextPart(text))
            self._begins = self._after_call = False
