"""An answer's parts as Anthropic's content blocks, and the events that tell of them."""

from typing import Any, Literal

from pydantic_core import from_json

from api.anthropic.stops import StopReader
from api.requests.parts import CallArguments, CallBegins, Part, ReasoningPart, TextPart
from api.requests.reading import AnswerReader, EndReason
from broker.wire import AnyFrame, Finished, Job

Event = dict[str, Any]
Kind = Literal["text", "thinking", "tool_use"]

# Thinking needs one to be accepted by clients; nothing here is signed, and none is checked.
SIGNATURE = "unsigned"
_STOP_REASONS: dict[EndReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}


class Message:
    """One answer. Its methods return the events in their order."""

    def __init__(self, request_id: str, job: Job) -> None:
        self._stops = StopReader(job.sampling.stop)
        self.ended = False
        self._request_id = request_id
        self._model = job.model
        self._reader = AnswerReader(job)
        self._content: list[dict[str, Any]] = []
        self._texts: list[str] = []  # of the open block, the last one of the content
        self._open: Kind | None = None
        self._end: Finished | None = None

    def opening(self) -> list[Event]:
        """The events before the answer."""
        return [{"type": "message_start", "message": self._message(None)}, {"type": "ping"}]

    def take(self, frame: AnyFrame) -> list[Event]:
        """The events of the answer's next frame."""
        events: list[Event] = []
        for shown in self._stops.take(frame):
            for part in self._reader.take(shown):
                events += self._add(part)
        if isinstance(frame, Finished):
            events += self._finish(frame)
        return events

    def whole(self) -> dict[str, Any]:
        """The message, which has ended."""
        if self._end is None:
            raise AssertionError("a stream ended without an end frame")
        reason = self._reader.reason(self._end)
        if reason == "stop" and self._stops.found is not None:
            return self._message("stop_sequence")
        return self._message(_STOP_REASONS[reason])

    def _add(self, part: Part) -> list[Event]:
        match part:
            case TextPart():
                delta = {"type": "text_delta", "text": part.text}
                return [*self._turn_to("text"), self._delta(part.text, delta)]
            case ReasoningPart():
                delta = {"type": "thinking_delta", "thinking": part.text}
                return [*self._turn_to("thinking"), self._delta(part.text, delta)]
            case CallArguments():
                delta = {"type": "input_json_delta", "partial_json": part.text}
                return [self._delta(part.text, delta)]
            case CallBegins():
                return self._begin("tool_use", {"id": _tool_id(part.id), "name": part.name})

    def _turn_to(self, kind: Kind) -> list[Event]:
        """Opens a block of that kind unless one is open."""
        return [] if self._open == kind else self._begin(kind, {})

    def _begin(self, kind: Kind, fields: dict[str, Any]) -> list[Event]:
        events = self._close()
        self._open, self._texts = kind, []
        self._content.append({"type": kind, **fields})
        block = self._filled("")
        return [*events, self._of_block("start", content_block=block)]

    def _delta(self, text: str, delta: dict[str, Any]) -> Event:
        self._texts.append(text)
        return self._of_block("delta", delta=delta)

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        events: list[Event] = []
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            events.append(self._of_block("delta", delta=delta))
        self._content[-1] = self._filled("".join(self._texts), SIGNATURE)
        events.append(self._of_block("stop"))
        self._open = None
        return events

    def _filled(self, text: str, signature: str = "") -> dict[str, Any]:
        """The open block with that text."""
        block = self._content[-1]
        match self._open:
            case "thinking":
                return {**block, "thinking": text, "signature": signature}
            case "tool_use":
                return {**block, "input": _object(text)}
        return {**block, "text": text}

    def _finish(self, end: Finished) -> list[Event]:
        events = [] if self._content else self._begin("text", {})
        events += self._close()
        self._end, self.ended = end, True
        reason = self.whole()["stop_reason"]
        delta = {"stop_reason": reason, "stop_sequence": self._stops.found}
        told = {"type": "message_delta", "delta": delta, "usage": self._usage()}
        return [*events, told, {"type": "message_stop"}]

    def _of_block(self, what: str, **fields: Any) -> Event:
        return {"type": f"content_block_{what}", "index": len(self._content) - 1, **fields}

    def _message(self, stop_reason: str | None) -> dict[str, Any]:
        return {
            "id": f"msg_{self._request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": list(self._content),
            "stop_reason": stop_reason,
            "stop_sequence": self._stops.found,
            "usage": {**self._usage(), "service_tier": "standard"},
        }

    def _usage(self) -> dict[str, int]:
        """Token counts; the prompt's are known at the end alone, and those from the cache apart."""
        cached = prompt = answer = 0
        if self._end is not None:
            prompt, answer = self._end.prompt_tokens, self._end.completion_tokens
            cached = min(self._end.cached_tokens, prompt)
        return {
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": answer,
        }


def _tool_id(call_id: str) -> str:
    return f"toolu_{call_id.removeprefix('call_')}"


def _object(arguments: str) -> dict[str, Any]:
    """The arguments of a call, as far as the model wrote them; {} if they are no object."""
    if not arguments:
        return {}
    try:
        value = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
