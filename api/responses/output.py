"""An answer's parts as a response's output items, and the events that tell of them.

All of it follows from the parts and the request's id, so another process, or a later reader of the
stored answer, makes the same items and the same events.
"""

from collections.abc import Sequence
from typing import Any, Literal

from api.requests.parts import CallArguments, CallBegins, Part, ReasoningPart, TextPart

Event = dict[str, Any]
Item = dict[str, Any]
ItemStatus = Literal["completed", "incomplete"]


class Output:
    """The output of one answer. Its methods return the events in their order.

    `summarised`: reasoning is told as its own summary, which some clients read alone.
    """

    def __init__(self, request_id: str, *, summarised: bool = False) -> None:
        self.items: list[Item] = []  # those that have ended
        self._request_id = request_id
        self._summarised = summarised
        self._open: _OpenItem | None = None
        self._call: int | None = None  # the open item's, of the answer's calls

    def add(self, part: Part, logprobs: Sequence[Item] = ()) -> list[Event]:
        """One more part of the answer, with the logprobs of a text's tokens."""
        match part:
            case TextPart(text="") | ReasoningPart(text="") | CallArguments(text=""):
                return []
            case TextPart():
                return [*self._turn_to("message"), self._delta(part.text, logprobs)]
            case ReasoningPart():
                return [*self._turn_to("reasoning"), self._delta(part.text)]
            case CallBegins():
                events = self._close("completed")
                self._call = part.index
                return events + self._begin(_CallItem(self._item_id("fc"), self._index, part))
            case CallArguments():
                return [self._delta(part.text)] if self._call == part.index else []

    def end(self, status: ItemStatus) -> list[Event]:
        """No more parts come. `status`: of the item that is open. An empty answer is a message."""
        events: list[Event] = []
        if self._open is None and not self.items:
            events += self._turn_to("message")
        return events + self._close(status)

    @property
    def _index(self) -> int:
        return len(self.items)

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._request_id}_{self._index}"

    def _turn_to(self, kind: Literal["message", "reasoning"]) -> list[Event]:
        """Opens an item of that kind unless one is open."""
        if self._open is not None and self._open.kind == kind:
            return []
        events = self._close("completed")
        self._call = None
        if kind == "message":
            return events + self._begin(_MessageItem(self._item_id("msg"), self._index))
        item_type = _SummaryItem if self._summarised else _ReasoningItem
        return events + self._begin(item_type(self._item_id("rs"), self._index))

    def _begin(self, item: "_OpenItem") -> list[Event]:
        self._open = item
        return item.opening()

    def _delta(self, text: str, logprobs: Sequence[Item] = ()) -> Event:
        if self._open is None:
            raise AssertionError("a delta without an item")
        return self._open.delta(text, logprobs)

    def _close(self, status: ItemStatus) -> list[Event]:
        if self._open is None:
            return []
        events = self._open.closing(status)
        self.items.append(self._open.item(status))
        self._open = None
        return events


class _OpenItem:
    """An output item that grows."""

    kind = ""

    def __init__(self, item_id: str, index: int) -> None:
        self._id = item_id
        self._place: Event = {"item_id": item_id, "output_index": index}
        self._texts: list[str] = []
        self._logprobs: list[Item] = []

    def delta(self, text: str, logprobs: Sequence[Item]) -> Event:
        """The event of more text."""
        self._texts.append(text)
        self._logprobs += logprobs
        event = self._delta_event(text)
        if logprobs:
            event["logprobs"] = list(logprobs)
        return event

    def opening(self) -> list[Event]:
        """The events before any text."""
        return [self._of_item("added", self._head())]

    def closing(self, status: ItemStatus) -> list[Event]:
        """The events after the last text."""
        return [*self._endings("".join(self._texts)), self._of_item("done", self.item(status))]

    def item(self, status: ItemStatus) -> Item:
        """The whole item."""
        return {**self._filled("".join(self._texts)), "status": status}

    def _of_item(self, what: str, item: Item) -> Event:
        return {
            "type": f"response.output_item.{what}",
            "output_index": self._place["output_index"],
            "item": item,
        }

    def _head(self) -> Item:
        return {**self._filled(None), "status": "in_progress"}

    def _filled(self, text: str | None) -> Item:
        """The item with that text; None: it has none yet."""
        raise NotImplementedError

    def _delta_event(self, text: str) -> Event:
        raise NotImplementedError

    def _endings(self, text: str) -> list[Event]:
        raise NotImplementedError


class _MessageItem(_OpenItem):
    """What the user reads."""

    kind = "message"

    def opening(self) -> list[Event]:
        added = {"type": "response.content_part.added", **self._part(text_part(""))}
        return [*super().opening(), added]

    def _filled(self, text: str | None) -> Item:
        content = [] if text is None else [text_part(text, self._logprobs)]
        return {"id": self._id, "type": "message", "role": "assistant", "content": content}

    def _delta_event(self, text: str) -> Event:
        return {
            "type": "response.output_text.delta",
            **self._place,
            "content_index": 0,
            "delta": text,
            "logprobs": [],
        }

    def _endings(self, text: str) -> list[Event]:
        done = {
            "type": "response.output_text.done",
            **self._place,
            "content_index": 0,
            "text": text,
            "logprobs": list(self._logprobs),
        }
        part = text_part(text, self._logprobs)
        return [done, {"type": "response.content_part.done", **self._part(part)}]

    def _part(self, part: Item) -> Event:
        return {**self._place, "content_index": 0, "part": part}


class _ReasoningItem(_OpenItem):
    """What the model thinks."""

    kind = "reasoning"

    def opening(self) -> list[Event]:
        added = {"type": "response.content_part.added", **self._part("")}
        return [*super().opening(), added]

    def _filled(self, text: str | None) -> Item:
        content = [] if text is None else [{"type": "reasoning_text", "text": text}]
        return {
            "id": self._id,
            "type": "reasoning",
            "summary": [],
            "content": content,
            "encrypted_content": None,
        }

    def _delta_event(self, text: str) -> Event:
        return {
            "type": "response.reasoning_text.delta",
            **self._place,
            "content_index": 0,
            "delta": text,
        }

    def _endings(self, text: str) -> list[Event]:
        done = {
            "type": "response.reasoning_text.done",
            **self._place,
            "content_index": 0,
            "text": text,
        }
        return [done, {"type": "response.content_part.done", **self._part(text)}]

    def _part(self, text: str) -> Event:
        part = {"type": "reasoning_text", "text": text}
        return {**self._place, "content_index": 0, "part": part}


class _SummaryItem(_OpenItem):
    """The same, told as a summary."""

    kind = "reasoning"

    def opening(self) -> list[Event]:
        added = {"type": "response.reasoning_summary_part.added", **self._part("")}
        return [*super().opening(), added]

    def _filled(self, text: str | None) -> Item:
        summary = [] if text is None else [{"type": "summary_text", "text": text}]
        return {"id": self._id, "type": "reasoning", "summary": summary, "encrypted_content": None}

    def _delta_event(self, text: str) -> Event:
        return {
            "type": "response.reasoning_summary_text.delta",
            **self._place,
            "summary_index": 0,
            "delta": text,
        }

    def _endings(self, text: str) -> list[Event]:
        done = {
            "type": "response.reasoning_summary_text.done",
            **self._place,
            "summary_index": 0,
            "text": text,
        }
        return [done, {"type": "response.reasoning_summary_part.done", **self._part(text)}]

    def _part(self, text: str) -> Event:
        return {
            **self._place,
            "summary_index": 0,
            "part": {"type": "summary_text", "text": text},
        }


class _CallItem(_OpenItem):
    """A call of a function."""

    kind = "function_call"

    def __init__(self, item_id: str, index: int, call: CallBegins) -> None:
        super().__init__(item_id, index)
        self._call = call

    def _filled(self, text: str | None) -> Item:
        return {
            "id": self._id,
            "type": "function_call",
            "call_id": self._call.id,
            "name": self._call.name,
            "arguments": text or "",
        }

    def _delta_event(self, text: str) -> Event:
        return {"type": "response.function_call_arguments.delta", **self._place, "delta": text}

    def _endings(self, text: str) -> list[Event]:
        return [
            {
                "type": "response.function_call_arguments.done",
                **self._place,
                "name": self._call.name,
                "arguments": text,
            }
        ]


def text_part(text: str, logprobs: Sequence[Item] = ()) -> Item:
    """The content of a message item."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


class Numbering:
    """Numbers a response's events so that they have the same numbers however the text was cut.

    A delta takes as many numbers as it has characters, and its own is the last of them. So a reader
    that comes again names the last number that it saw, and what it is given begins behind it.
    """

    def __init__(self, after: int = -1) -> None:
        self._after = after
        self._next = 0

    def number(self, event: Event) -> Event | None:
        """The event with its number, and without what the reader has; None: it has all of it."""
        delta = event.get("delta")
        self._next += len(delta) if delta is not None else 1
        number = self._next - 1
        unread = number - self._after
        if unread <= 0:
            return None
        if delta is not None and unread < len(delta):
            event = {**event, "delta": delta[-unread:]}
        return {**event, "sequence_number": number}
