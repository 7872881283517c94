"""A response while its answer comes: frames become events, and the response object at the end."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from api.answers.record import MAX_FORMAT
from api.http import sse
from api.openai.logprobs import for_chat
from api.requests import position
from api.requests.parts import CallBegins, Part, ReasoningPart, TextPart
from api.requests.reading import AnswerReader
from api.responses.output import Event, Numbering, Output
from api.responses.shapes import Shape, Status, usage
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, Start, TokenLogprob, Waiting

_STATUSES: dict[str, Status] = {
    "stop": "completed",
    "length": "incomplete",
    "cancelled": "cancelled",
}
# There is no event for a cancelled response: it is incomplete, too.
_LAST_EVENTS = {"completed": "completed", "incomplete": "incomplete", "cancelled": "incomplete"}


class Progress:
    """One response. `job`: with the functions that its answer may call.

    `completed`: when the answer was complete, in Unix seconds; None: as this takes its end.
    """

    def __init__(self, job: Job, shape: Shape, completed: float | None = None) -> None:
        self.response: dict[str, Any] | None = None  # once the answer has ended
        self.end: Finished | None = None
        self.start: Start | None = None  # of the newest run
        self.texts: list[str] = []  # of the answer, as the model wrote it
        self._completed = completed
        self._shape = shape
        self._reader = AnswerReader(job)
        summarised = shape.parameters["reasoning"]["summary"] is not None
        self.output = Output(shape.name, summarised=summarised)
        self._read = 0  # characters of the answer
        self._reasoned = 0  # of them in reasoning
        self._logprobs: list[TokenLogprob] = []  # of tokens whose part is undecided

    @property
    def formats(self) -> tuple[str, str]:
        """How the answer's text marks calls of tools, and reasoning; see api/requests/parts."""
        start = self._reader.start
        if start is None:
            return "", ""
        return start.tool_format[:MAX_FORMAT], start.reasoning_format[:MAX_FORMAT]

    @property
    def completed_at(self) -> int | None:
        """When the answer was complete, in Unix seconds; what is stored counts."""
        return None if self.response is None else self.response["completed_at"]

    @completed_at.setter
    def completed_at(self, moment: int | None) -> None:
        if self.response is not None:
            self.response["completed_at"] = moment

    def opening(self) -> list[Event]:
        """The events before the answer."""
        statuses: list[Status] = ["in_progress"]
        if self._shape.parameters["background"]:
            statuses.insert(0, "queued")
        created = {"type": "response.created", "response": self._shape.unfinished(statuses[0])}
        return [created, *map(self._standing, statuses)]

    def take(self, frame: AnyFrame) -> list[Event]:
        """The events of the answer's next frame."""
        events: list[Event] = []
        if isinstance(frame, Start):
            self.start = frame
        elif isinstance(frame, Delta):
            self.texts.append(frame.text)
            self._logprobs += frame.logprobs
        for part in self._reader.take(frame):
            if isinstance(part, TextPart | ReasoningPart):
                self._read += len(part.text)
            if isinstance(part, ReasoningPart):
                self._reasoned += len(part.text)
            events += self.output.add(part, self._logprobs_of(part))
        if isinstance(frame, Finished):
            events += self._finish(frame)
        elif isinstance(frame, Failed):
            self.response = self._shape.failed(frame)
            events.append({"type": "response.failed", "response": self.response})
        return events

    def _logprobs_of(self, part: Part) -> list[dict[str, Any]]:
        """Those of the text's tokens; reasoning and calls tell none."""
        if not self._logprobs or isinstance(part, CallBegins):
            return []
        entries, self._logprobs = _split(self._logprobs, part.text.encode())
        told = for_chat(entries) if isinstance(part, TextPart) else None
        return [] if told is None else told["content"]

    def _standing(self, status: Status) -> Event:
        return {"type": f"response.{status}", "response": self._shape.unfinished(status)}

    def _finish(self, end: Finished) -> list[Event]:
        self.end = end
        status = _STATUSES[end.reason]
        events = self.output.end("completed" if status == "completed" else "incomplete")
        self.response = self._shape.finished(
            status,
            self.output.items,
            usage(end, self._reasoned / max(1, self._read)),
            completed=int(self._completed or time.time()),
        )
        return [*events, {"type": f"response.{_LAST_EVENTS[status]}", "response": self.response}]


def _split(
    entries: list[TokenLogprob], text: bytes
) -> tuple[list[TokenLogprob], list[TokenLogprob]]:
    """The tokens that make the text, and those behind it; marks and white space may precede it."""
    begin = b"".join(entry.token for entry in entries).find(text)
    if begin < 0:
        return entries, []
    at, first, last = 0, 0, 0
    for number, entry in enumerate(entries, 1):
        at += len(entry.token)
        if at <= begin:
            first = number
        last = number
        if at >= begin + len(text):
            break
    return entries[first:last], entries[last:]


async def events(
    progress: Progress,
    frames: AsyncIterator[AnyFrame | None],
    *,
    after: int = -1,
    waiting: str | None = None,
    before_last: Callable[[], Awaitable[None]] | None = None,
) -> AsyncGenerator[bytes]:
    """The response as server-sent events, those behind number `after`.

    `waiting`: why the job must wait, if that is known already. `before_last` is called when the
    answer has ended, before a client hears of it.
    """
    numbering = Numbering(after)
    for event in _numbered(numbering, progress.opening()):
        yield event
    if waiting:
        yield sse.comment(f"waiting: {waiting}")
    async for frame in frames:
        if frame is None:
            yield sse.comment("keep-alive")
            continue
        if isinstance(frame, Waiting):
            yield sse.comment(f"waiting: {position.describe(frame)}")
            continue
        told = progress.take(frame)
        if progress.response is not None and before_last is not None:
            await before_last()
        for event in _numbered(numbering, told):
            yield event
        if progress.response is not None:
            return


def _numbered(numbering: Numbering, told: list[Event]) -> list[bytes]:
    numbered = [numbering.number(event) for event in told]
    return [sse.event(event["type"], event) for event in numbered if event is not None]
