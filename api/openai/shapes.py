"""OpenAI's response objects, as plain dictionaries."""

from dataclasses import dataclass
from typing import Any

from broker.wire import Finished

_REASONS = {"stop": "stop", "length": "length", "cancelled": "stop"}


def usage(end: Finished) -> dict[str, int]:
    """Tokens read and written."""
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }


@dataclass(frozen=True, slots=True)
class Shape:
    """The objects of one answer; its two subclasses differ in where they put the text."""

    request_id: str
    model: str
    created: int
    with_usage: bool = False
    tier: str | None = None

    def whole(self, text: str, end: Finished) -> dict[str, Any]:
        """An answer in one piece."""
        raise NotImplementedError

    def first(self) -> dict[str, Any] | None:
        """The chunk before any text, if there is one."""
        raise NotImplementedError

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk of text."""
        raise NotImplementedError

    def last(self, end: Finished) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        raise NotImplementedError

    def usage_chunk(self, end: Finished) -> dict[str, Any]:
        """The chunk after the last one, if usage was asked for."""
        return {**self._envelope(streamed=True), "choices": [], "usage": usage(end)}

    def _envelope(self, *, streamed: bool) -> dict[str, Any]:
        head = self._head(streamed=streamed)
        if self.tier is not None:
            head["service_tier"] = self.tier
        return head

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        raise NotImplementedError

    def _object(self, choice: dict[str, Any], *, streamed: bool = True) -> dict[str, Any]:
        made = {**self._envelope(streamed=streamed), "choices": [{"index": 0, "logprobs": None, **choice}]}
        if streamed and self.with_usage:
            made["usage"] = None
        return made


class ChatShape(Shape):
    """`chat.completion` and its chunks."""

    __slots__ = ()

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        return {"id": f"chatcmpl-{self.request_id}", "object": kind, "created": self.created, "model": self.model}

    def whole(self, text: str, end: Finished) -> dict[str, Any]:
        """See Shape."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"message": message, "finish_reason": _REASONS[end.reason]}
        return {**self._object(choice, streamed=False), "usage": usage(end)}

    def first(self) -> dict[str, Any]:
        """See Shape."""
        return self._object({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def piece(self, text: str) -> dict[str, Any]:
        """See Shape."""
        return self._object({"delta": {"content": text}, "finish_reason": None})

    def last(self, end: Finished) -> dict[str, Any]:
        """See Shape."""
        return self._object({"delta": {}, "finish_reason": _REASONS[end.reason]})


class TextShape(Shape):
    """`text_completion`, whole or in pieces."""

    __slots__ = ()

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self.request_id}",
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def whole(self, text: str, end: Finished) -> dict[str, Any]:
        """See Shape."""
        choice = {"text": text, "finish_reason": _REASONS[end.reason]}
        return {**self._object(choice, streamed=False), "usage": usage(end)}

    def first(self) -> None:
        """See Shape."""
        return

    def piece(self, text: str) -> dict[str, Any]:
        """See Shape."""
        return self._object({"text": text, "finish_reason": None})

    def last(self, end: Finished) -> dict[str, Any]:
        """See Shape."""
        return self._object({"text": "", "finish_reason": _REASONS[end.reason]})


def model(name: str) -> dict[str, Any]:
    """A model in OpenAI's list. Nobody knows when it was made."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "canopy"}
