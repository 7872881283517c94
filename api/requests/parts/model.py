"""The parts of an answer, and what takes it apart."""

from typing import Protocol

import msgspec


class TextPart(msgspec.Struct, frozen=True):
    """What the user reads."""

    text: str


class ReasoningPart(msgspec.Struct, frozen=True):
    """What the model thinks before it answers."""

    text: str


class CallBegins(msgspec.Struct, frozen=True):
    """A call of the tool `name` begins. `index`: which of the answer's calls, from 0."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """More of the JSON text of that call's arguments."""

    index: int
    text: str


Part = TextPart | ReasoningPart | CallBegins | CallArguments


class PartParser(Protocol):
    """Takes the answer's text as it comes."""

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain now; what could begin a mark waits for more text."""

    def end(self, *, cut: bool = False) -> list[Part]:
        """The rest: no more text comes. `cut`: the model would have written more."""


class PlainText:
    """The parser of a model that marks nothing."""

    def feed(self, text: str) -> list[Part]:
        """All of it."""
        return [TextPart(text)] if text else []

    def end(self, *, cut: bool = False) -> list[Part]:
        """Nothing is kept."""
        return []
