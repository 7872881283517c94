"""Tools, calls and results as chat templates take them, or as plain turns for those without."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import msgspec

from broker.wire import ChatMessage, Tool, ToolCall

_SHORT_ID = 9  # characters: what Mistral's templates insist on
_DESCRIPTION = """You can call these functions:
<tools>
{tools}
</tools>

To call one, write its name and its arguments as JSON between these marks, for each call:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""

Messages = tuple[ChatMessage, ...]


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


def turns(
    messages: Messages, mark: Callable[[str], str], *, short_ids: bool
) -> list[dict[str, Any]]:
    """Turns as templates take them. `mark`: for texts that are not contents."""
    names: dict[str, str] = {}
    objects: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            turn["reasoning_content"] = mark(message.reasoning)
        if message.tool_calls:
            calls: list[dict[str, Any]] = []
            for call in message.tool_calls:
                names[call.id] = call.name
                calls.append(_call_object(call, mark, short_ids=short_ids))
            turn["tool_calls"] = calls
        if message.role == "tool":
            turn["name"] = mark(message.name or names.get(message.tool_call_id, ""))
            turn["tool_call_id"] = _id(message.tool_call_id, short=short_ids)
        objects.append(turn)
    return objects


def plain(messages: Messages, tools: tuple[Tool, ...]) -> Messages:
    """The same dialogue without calls and results of its own kind; `tools` are described."""
    plain_turns = [_plain(message) for message in messages]
    if not tools:
        return tuple(plain_turns)
    lines = [json.dumps(tool, ensure_ascii=False) for tool in tool_objects(tools, str)]
    description = _DESCRIPTION.format(tools="\n".join(lines))
    first = plain_turns[0] if plain_turns else None
    if first is not None and first.role == "system":
        content = f"{first.content}\n\n{description}"
        return (msgspec.structs.replace(first, content=content), *plain_turns[1:])
    return (ChatMessage(role="system", content=description), *plain_turns)


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


def _call_object(call: ToolCall, mark: Callable[[str], str], *, short_ids: bool) -> dict[str, Any]:
    arguments = marked_value(parsed(call.arguments or "{}"), mark)
    return {
        "id": _id(call.id, short=short_ids),
        "type": "function",
        "function": {"name": mark(call.name), "arguments": arguments},
    }


def _id(identifier: str, *, short: bool) -> str:
    """Of letters and digits, as an id may come from anywhere."""
    digest = hashlib.sha256(identifier.encode()).hexdigest()
    return digest[:_SHORT_ID] if short else f"call_{digest[:24]}"


def _plain(message: ChatMessage) -> ChatMessage:
    if message.role == "tool":
        content = f"<tool_response>\n{message.content}\n</tool_response>"
        return ChatMessage(role="user", content=content)
    texts = [message.content] if message.content else []
    for call in message.tool_calls:
        body = {"name": call.name, "arguments": parsed(call.arguments or "{}")}
        texts.append(f"<tool_call>\n{json.dumps(body, ensure_ascii=False)}\n</tool_call>")
    return ChatMessage(role=message.role, content="\n".join(texts))
