"""Tools, calls and results as chat templates take them."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from broker.wire import ChatMessage, Tool, ToolCall

_SHORT_ID = 9  # characters: what Mistral's templates insist on
Messages = tuple[ChatMessage, ...]


class TurnStyle(NamedTuple):
    """What a template insists on.

    `short_ids`: ids of calls have nine characters. `text_arguments`: it joins the arguments of a
    call to its text. `thinking`: before a call it takes a reasoning or a content, not both.
    """

    short_ids: bool = False
    text_arguments: bool = False
    thinking: bool = False


def tool_objects(tools: tuple[Tool, ...], mark: Callable[[str], str]) -> list[dict[str, Any]]:
    """Tools as templates take them; `mark` is applied to every text."""
    objects: list[dict[str, Any]] = []
    for tool in tools:
        function: dict[str, Any] = {
            "name": tool.name,
            "description": tool.description,
            "parameters": parsed(tool.parameters) or {"type": "object", "properties": {}},
        }
        objects.append({"type": "function", "function": marked_value(function, mark)})
    return objects


def turns(messages: Messages, mark: Callable[[str], str], style: TurnStyle) -> list[dict[str, Any]]:
    """Turns as templates take them. `mark`: for texts that are not contents."""
    names: dict[str, str] = {}
    objects: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            turn["reasoning_content"] = mark(message.reasoning)
        if style.thinking and message.tool_calls and message.reasoning and message.content:
            thinking = f"{mark(message.reasoning)}\n\n{message.content}"
            turn |= {"reasoning_content": thinking, "content": ""}
        if message.tool_calls:
            calls: list[dict[str, Any]] = []
            for call in message.tool_calls:
                names[call.id] = call.name
                calls.append(_call_object(call, mark, style))
            turn["tool_calls"] = calls
        if message.role == "tool":
            turn["name"] = mark(message.name or names.get(message.tool_call_id, ""))
            turn["tool_call_id"] = _id(message.tool_call_id, short=style.short_ids)
        objects.append(turn)
    return objects


def parsed(text: str) -> Any:
    """The value of a JSON text, or the text if it is none."""
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def marked_value(value: Any, mark: Callable[[str], str]) -> Any:
    """The value with `mark` applied to each text in it."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, list):
        return [marked_value(item, mark) for item in value]
    if isinstance(value, dict):
        return {mark(key): marked_value(item, mark) for key, item in value.items()}
    return value


def _call_object(call: ToolCall, mark: Callable[[str], str], style: TurnStyle) -> dict[str, Any]:
    arguments = marked_value(parsed(call.arguments or "{}"), mark)
    if style.text_arguments and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": _id(call.id, short=style.short_ids),
        "type": "function",
        "function": {"name": mark(call.name), "arguments": arguments},
    }


def _id(identifier: str, *, short: bool) -> str:
    """Of letters and digits, as an id may come from anywhere."""
    digest = hashlib.sha256(identifier.encode()).hexdigest()
    return digest[:_SHORT_ID] if short else f"call_{digest[:24]}"
