"""OpenAI's response objects, as plain dictionaries."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from api.openai import logprobs
from api.requests.complete import Answer
from api.requests.parts import CallArguments, CallBegins, Part, ReasoningPart, TextPart
from api.requests.reading import EndReason
from broker.wire import Finished, Task, TokenLogprob, ToolCall


def usage(ends: Sequence[Finished], reasoning_tokens: int = 0) -> dict[str, Any]:
    """Token counts; all choices have the same prompt, which counts once."""
    prompt = max(end.prompt_tokens for end in ends)
    completion = sum(end.completion_tokens for end in ends)
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    cached = min(end.cached_tokens for end in ends)  # choices find what the first one has read
    if cached:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    if reasoning_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return counts


@dataclass(frozen=True, slots=True)
class Shape:
    """The objects of one request's answers; the subclasses differ in where they put the text."""

    request_id: str
    model: str
    created: int
    with_usage: bool = False
    continuous_usage: bool = False  # each chunk tells the usage so far
    tier: str | None = None
    functions: bool = False  # calls in the older way: `function_call`

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """All choices as one object."""
        choices = [self._choice(index, self._whole(answer)) for index, answer in enumerate(answers)]
        return {
            **self._envelope(streamed=False),
            "choices": choices,
            "usage": usage(
                [answer.end for answer in answers],
                sum(answer.reasoning_tokens for answer in answers),
            ),
        }

    def first(self, index: int) -> dict[str, Any] | None:
        """The chunk before any text, if there is one."""
        raise NotImplementedError

    def delta(
        self, index: int, text: str, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A chunk of text."""
        raise NotImplementedError

    def part(
        self, index: int, part: Part, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A chunk with a part of an answer that is not all text."""
        raise NotImplementedError

    def last(self, index: int, end: Finished, reason: EndReason) -> dict[str, Any]:
        """The chunk with the reason why the answer ended."""
        raise NotImplementedError

    def logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
        """The logprobs of a part of the text that begins at character `offset`."""
        raise NotImplementedError

    def usage_chunk(self, ends: Sequence[Finished], reasoning_tokens: int) -> dict[str, Any]:
        """The chunk after the last one, if usage was requested."""
        counts = usage(ends, reasoning_tokens)
        return {**self._envelope(streamed=True), "choices": [], "usage": counts}

    def _envelope(self, *, streamed: bool) -> dict[str, Any]:
        head = self._head(streamed=streamed)
        if self.tier is not None:
            head["service_tier"] = self.tier
        return head

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        raise NotImplementedError

    def _whole(self, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def _choice(self, index: int, content: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "logprobs": None, **content}

    def _chunk(self, index: int, content: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._envelope(streamed=True), "choices": [self._choice(index, content)]}
        if self.with_usage:
            chunk["usage"] = None
        return chunk


def _reasoning(text: str) -> dict[str, Any]:
    """Under the names that clients of vLLM and of others read."""
    return {"reasoning_content": text, "reasoning": text}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


class ChatShape(Shape):
    """`chat.completion` and its chunks."""

    __slots__ = ()

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _whole(self, answer: Answer) -> dict[str, Any]:
        return {
            "logprobs": self.logprobs(answer.logprobs, 0),
            "message": self._message(answer),
            "finish_reason": self._reason(answer.reason),
        }

    def _message(self, answer: Answer) -> dict[str, Any]:
        content = answer.text or None if answer.calls else answer.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if answer.reasoning:
            message |= _reasoning(answer.reasoning)
        if answer.calls and self.functions:
            [call, *_] = answer.calls
            message["function_call"] = {"name": call.name, "arguments": call.arguments}
        elif answer.calls:
            message["tool_calls"] = [_tool_call(call) for call in answer.calls]
        return message

    def _reason(self, reason: EndReason) -> str:
        return "function_call" if reason == "tool_calls" and self.functions else reason

    def first(self, index: int) -> dict[str, Any]:
        """See Shape."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk(index, {"delta": delta, "finish_reason": None})

    def delta(
        self, index: int, text: str, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """See Shape."""
        delta = {"content": text}
        return self._chunk(index, {"logprobs": logprobs, "delta": delta, "finish_reason": None})

    def part(
        self, index: int, part: Part, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """See Shape."""
        delta = self._delta_of(part)
        return self._chunk(index, {"logprobs": logprobs, "delta": delta, "finish_reason": None})

    def _delta_of(self, part: Part) -> dict[str, Any]:
        match part:
            case TextPart():
                return {"content": part.text}
            case ReasoningPart():
                return _reasoning(part.text)
            case CallBegins():
                function = {"name": part.name, "arguments": ""}
                if self.functions:
                    return {"function_call": function}
                call = {"index": part.index, "id": part.id, "type": "function"}
                return {"tool_calls": [{**call, "function": function}]}
            case CallArguments():
                more = {"arguments": part.text}
                if self.functions:
                    return {"function_call": more}
                return {"tool_calls": [{"index": part.index, "function": more}]}

    def last(self, index: int, end: Finished, reason: EndReason) -> dict[str, Any]:
        """See Shape."""
        return self._chunk(index, {"delta": {}, "finish_reason": self._reason(reason)})

    def logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
        """See Shape."""
        return logprobs.for_chat(entries)


def model(
    name: str,
    context_length: int | None,
    capabilities: dict[str, bool] | None = None,
    *,
    paused: bool = False,
    tasks: Iterable[Task] = (),
) -> dict[str, Any]:
    """A model in OpenAI's and Anthropic's list; when it was created is unknown.

    `context_length`, in tokens, stands under the names that clients of vLLM and OpenRouter read.
    `capabilities` and `tasks`: what its nodes do, if any serves it. `paused`: it takes no new
    requests now.
    """
    owner, slash, _ = name.partition("/")
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": owner if slash else "canopy",
        "type": "model",  # from here on as Anthropic's clients read it
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
    }
    if context_length is not None:
        entry["context_length"] = context_length
        entry["max_model_len"] = context_length
    if capabilities is not None:
        entry["capabilities"] = capabilities
    if tasks:
        entry["tasks"] = sorted(tasks)
    if paused:
        entry["paused"] = True
    return entry
