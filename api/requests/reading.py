"""One request's answers read in parts: text, reasoning and calls, of each of its choices."""

from collections.abc import Iterable
from typing import Literal

from api.requests.parts import (
    CallArguments,
    CallBegins,
    Part,
    PartParser,
    PlainText,
    ReasoningPart,
    TextPart,
    parser_for,
)
from broker.wire import AnyFrame, Delta, Finished, Job, Start, ToolCall

EndReason = Literal["stop", "length", "tool_calls"]


class AnswerReader:
    """Takes one answer apart. It is read the same way by whoever reads it, and however often."""

    def __init__(self, job: Job) -> None:
        self.calls = 0  # begun so far
        self.reasoning_tokens = 0  # an estimate: of the frames that had reasoning
        self.start: Start | None = None  # whose formats the text has; see `take`
        self._job = job
        self.plain = True  # all of it is text, as it comes
        self._parser: PartParser = PlainText()
        self._begun = False  # there is text

    def plain_text(self, delta: Delta) -> str | None:
        """The text, if all of the answer is; else None, and the frame is to be taken."""
        if not self.plain:
            return None
        self._begun = self._begun or bool(delta.text)
        return delta.text

    def take(self, frame: AnyFrame) -> list[Part]:
        """What the answer's next frame brings."""
        match frame:
            case Delta():
                return self._delta(frame)
            case Start() if not self._begun:  # a run that continues a text goes on in its format
                self.start = frame
                self._parser = parser_for(self._job, frame)
                self.plain = isinstance(self._parser, PlainText)
            case Finished():
                return self._counted(self._parser.end(cut=frame.reason == "length"))
        return []

    def reason(self, end: Finished) -> EndReason:
        """Why the answer ended, for its client. Cancelled answers count as stopped."""
        if end.reason == "length":
            return "length"
        return "tool_calls" if self.calls else "stop"

    def _delta(self, delta: Delta) -> list[Part]:
        self._begun = self._begun or bool(delta.text)
        parts = self._counted(self._parser.feed(delta.text))
        if parts and isinstance(parts[0], ReasoningPart):
            self.reasoning_tokens += delta.tokens
        return parts

    def _counted(self, parts: list[Part]) -> list[Part]:
        for part in parts:
            if isinstance(part, CallBegins):
                self.calls += 1
        return parts


class Collected:
    """Parts of one answer, put together."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[CallBegins, list[str]]] = []

    def add(self, parts: Iterable[Part]) -> None:
        """The next parts."""
        for part in parts:
            match part:
                case TextPart():
                    self._text.append(part.text)
                case ReasoningPart():
                    self._reasoning.append(part.text)
                case CallBegins():
                    self._calls.append((part, []))
                case CallArguments():
                    self._calls[part.index][1].append(part.text)

    @property
    def text(self) -> str:
        """What the user reads."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """What the model thought before."""
        return "".join(self._reasoning)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls, with their arguments as the model wrote them."""
        calls: list[ToolCall] = []
        for begins, arguments in self._calls:
            calls.append(
                ToolCall(id=begins.id, name=begins.name, arguments="".join(arguments) or "{}")
            )
        return tuple(calls)
