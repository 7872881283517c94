"""Reasoning before an answer: `<think>` ... `</think>`."""

from dataclasses import dataclass

from api.requests.parts.harmony import HARMONY, HarmonyParser
from api.requests.parts.marks import trailing_space, undecided
from api.requests.parts.model import Part, PartParser, PlainText, ReasoningPart, TextPart


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """How a model marks it. `opened`: the prompt ends with `begin`, the answer is inside."""

    begin: str
    end: str
    opened: bool = False


REASONING = {
    "think": ReasoningMarks("<think>", "</think>"),
    "think-opened": ReasoningMarks("<think>", "</think>", opened=True),
    "channel": ReasoningMarks("<|channel>thought", "<channel|>"),
    "channel-opened": ReasoningMarks("<|channel>thought", "<channel|>", opened=True),
}  # by Start.reasoning_format


def without_reasoning(text: str, reasoning_format: str) -> str:
    """What the user reads of a whole answer. `reasoning_format`: of REASONING, or HARMONY."""
    marks = REASONING.get(reasoning_format)
    parser: PartParser
    if reasoning_format == HARMONY:
        parser = HarmonyParser("", frozenset())
    elif marks is not None:
        parser = ReasoningParser(PlainText(), marks)
    else:
        return text
    parts = parser.feed(text) + parser.end()
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def sendable(text: str, reasoning_format: str) -> str:
    """An earlier answer as its model's template takes it: most take out the reasoning themselves,
    but refuse channels.
    """
    return without_reasoning(text, reasoning_format) if reasoning_format == HARMONY else text


class ReasoningParser:
    """Keeps the PartParser protocol: reasoning first, then what `answer` makes of the rest.

    White space around both is left out. Reasoning that never ends is reasoning to the last.
    """

    def __init__(self, answer: PartParser, marks: ReasoningMarks) -> None:
        self._answer = answer
        self._marks = marks
        self._text = ""  # not decided yet
        self._begun = False  # the beginning is behind: reasoning, or the answer
        self._thinking = False
        self._silent = True  # nothing but white space has come since a mark
        self._thought = False

    def feed(self, text: str) -> list[Part]:
        """See PartParser."""
        if self._begun and not self._thinking and not self._silent:
            return self._answer.feed(text)
        self._text += text
        if not self._begun:
            self._begin()
        if not self._begun:
            return []
        parts: list[Part] = []
        if self._thinking:
            parts = self._think()
        if not self._thinking:
            parts += self._answer_begins()
        return parts

    def end(self, *, cut: bool = False) -> list[Part]:
        """See PartParser."""
        text, self._text = self._text, ""
        if self._thinking or (self._marks.opened and not self._begun):
            text = text.rstrip()
            if self._silent:
                text = text.lstrip()
            return [ReasoningPart(text)] if text else []
        if self._thought:
            text = text.lstrip()
        return self._answer.feed(text) + self._answer.end(cut=cut)

    def _begin(self) -> None:
        """Decides whether the answer begins with reasoning."""
        begin = self._marks.begin
        stripped = self._text.lstrip()
        if stripped.startswith(begin):
            self._begun = self._thinking = self._thought = True
            self._text = stripped[len(begin) :]
        elif not begin.startswith(stripped):
            self._begun = True
            self._thinking = self._thought = self._marks.opened

    def _think(self) -> list[Part]:
        """The reasoning that is certain; ends `_thinking` at its mark."""
        end = self._marks.end
        at = self._text.find(end)
        if at >= 0:
            thought, self._text = self._text[:at].rstrip(), self._text[at + len(end) :]
            self._thinking = False
        else:
            open_end = len(self._text) - undecided(self._text, [end])
            open_end -= trailing_space(self._text[:open_end])
            thought, self._text = self._text[:open_end], self._text[open_end:]
        if self._silent:
            thought = thought.lstrip()
            self._silent = not thought
        if not self._thinking:
            self._silent = True
        return [ReasoningPart(thought)] if thought else []

    def _answer_begins(self) -> list[Part]:
        """The answer's first text, without the white space behind the reasoning."""
        text, self._text = self._text, ""
        if self._thought:
            text = text.lstrip()
        self._silent = self._thought and not text
        return self._answer.feed(text) if text else []
