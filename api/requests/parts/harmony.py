"""Answers as gpt-oss writes them: messages in channels (OpenAI calls the format harmony).

`<|channel|>analysis<|message|>` ... `<|end|><|start|>assistant<|channel|>final<|message|>` ...
"""

import re
from enum import Enum

from api.requests.parts.calls import Calls
from api.requests.parts.marks import first_mark, trailing_space, undecided
from api.requests.parts.model import Part, ReasoningPart, TextPart

HARMONY = "harmony"  # Start.reasoning_format, and Start.tool_format
_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>")
_BEGINNINGS = ("<|channel|>", "<|start|>", "<|message|>", "to=")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]{1,256})")
_FUNCTIONS = "functions."
_BETWEEN = "\n\n"  # texts of several messages
_LONGEST_HEADER = 1024  # characters


class _Kind(Enum):
    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"


class HarmonyParser:
    """Keeps the PartParser protocol. White space around messages is left out."""

    def __init__(self, request_id: str, tools: frozenset[str]) -> None:
        """`tools`: their names; without any, calls are text."""
        self._calls = Calls(request_id)
        self._tools = tools
        self._text = ""  # undecided
        self._kind: _Kind | None = None  # of the present message; None: its header comes
        self._silent = True  # the message has had nothing but white space
        self._shown: set[_Kind] = set()  # kinds that have had text
        self._begun = False

    def feed(self, text: str) -> list[Part]:
        """See PartParser."""
        self._text += text
        parts: list[Part] = []
        more = bool(self._text)
        while more:
            more = self._header(parts) if self._kind is None else self._content(parts)
        return parts

    def end(self, *, cut: bool = False) -> list[Part]:
        """See PartParser."""
        parts: list[Part] = []
        text, self._text = self._text, ""
        if self._kind is not None:
            self._show(text.rstrip(), parts)
            self._finish(parts)
        elif not text.lstrip().startswith(_BEGINNINGS):  # no header has begun
            self._kind = _Kind.TEXT
            self._show(text, parts)
        return parts

    def _header(self, parts: list[Part]) -> bool:
        """Finds out what the message is. False: more text must come."""
        stripped = self._text.lstrip()
        if not self._begun and not stripped.startswith(_BEGINNINGS):
            if any(mark.startswith(stripped) for mark in _BEGINNINGS):
                return False
            self._begin(_Kind.TEXT)
            return True
        at = self._text.find(_MESSAGE, 0, _LONGEST_HEADER)
        if at < 0 and len(self._text) < _LONGEST_HEADER:
            return False
        if at < 0:  # no header: all but the mark is text
            self._text = stripped.removeprefix("<|start|>").removeprefix("<|channel|>")
            self._begin(_Kind.TEXT)
            return True
        header, self._text = self._text[:at], self._text[at + len(_MESSAGE) :]
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        if recipient is not None and self._tools:
            self._begin(_Kind.CALL)
            parts.append(self._calls.begin(recipient[1].removeprefix(_FUNCTIONS)))
        elif channel is not None and channel[1] == "analysis":
            self._begin(_Kind.REASONING)
        else:
            self._begin(_Kind.TEXT)
        return True

    def _begin(self, kind: _Kind) -> None:
        self._kind, self._silent, self._begun = kind, True, True

    def _content(self, parts: list[Part]) -> bool:
        """Moves to the end of the message. False: more text must come."""
        if self._silent:
            self._text = self._text.lstrip()
        found = first_mark(self._text, _ENDS)
        if found is None:
            certain = len(self._text) - undecided(self._text, _ENDS)
            certain -= trailing_space(self._text[:certain])
            self._show(self._text[:certain], parts)
            self._text = self._text[certain:]
            return False
        at, mark = found
        self._show(self._text[:at].rstrip(), parts)
        self._finish(parts)
        self._kind = None
        # these begin the next message
        keep = 0 if mark in ("<|start|>", "<|channel|>") else len(mark)
        self._text = self._text[at + keep :]
        return bool(self._text)

    def _show(self, text: str, parts: list[Part]) -> None:
        kind = self._kind
        if self._silent:
            text = text.lstrip()
        if not text or kind is None:
            return
        if kind is _Kind.CALL:
            parts.append(self._calls.arguments(text))
        else:
            if self._silent and kind in self._shown:
                text = _BETWEEN + text
            self._shown.add(kind)
            parts.append(TextPart(text) if kind is _Kind.TEXT else ReasoningPart(text))
        self._silent = False

    def _finish(self, parts: list[Part]) -> None:
        """A call without arguments has none."""
        if self._kind is _Kind.CALL and self._silent:
            parts.append(self._calls.arguments("{}"))
