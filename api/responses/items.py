"""A request's input items: checked, kept in OpenAI's shape, and read as turns of a dialogue."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from api.http.parsing import MAX_ECHOED
from broker.wire import ChatMessage, Role, ToolCall

Item = dict[str, Any]

MAX_ITEMS = 10_000
MAX_ID = 200  # characters of an item's id, a call's id or a function's name
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
# The parts of a content that have text, and the field it is in.
_TEXT_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}
_SEEN_PARTS = {
    "input_image": "images",
    "image_url": "images",
    "input_file": "files",
    "input_audio": "audio",
}


def checked(sent: Any) -> Any:
    """The items of an input; a text is one message of the user.

    Raises PydanticCustomError for an item that is not understood.
    """
    if isinstance(sent, str):
        return [_message({"role": "user", "content": sent}, 0)]
    if not isinstance(sent, list):
        return sent
    return [_checked_item(item, index) for index, item in enumerate(sent)]


def with_ids(items: Iterable[Item], request_id: str) -> list[Item]:
    """The items, each with an id from which `response_of` finds it again."""
    named: list[Item] = []
    for index, item in enumerate(items):
        item_id = f"{_PREFIXES[item['type']]}_{request_id}_i{index}"
        named.append({"id": item_id, **item})
    return named


_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


def response_of(item_id: str) -> str | None:
    """The request id of the response whose input or output the item is; None for another's id."""
    pieces = item_id.split("_")
    return pieces[1] if len(pieces) == 3 else None


def turns(items: Sequence[Item]) -> list[ChatMessage]:
    """The items as turns: an assistant's reasoning, text and calls are one turn."""
    dialogue: list[ChatMessage] = []
    names = {item["call_id"]: item["name"] for item in items if item["type"] == "function_call"}
    answer = _AssistantTurn()
    for item in items:
        if answer.takes(item):
            continue
        dialogue += answer.turns()
        answer = _AssistantTurn()
        if not answer.takes(item):
            dialogue.append(_turn(item, names))
    return dialogue + answer.turns()


def _turn(item: Item, names: Mapping[str, str]) -> ChatMessage:
    """A message that is not the assistant's, or a function's output. `names`: by call id."""
    if item["type"] == "message":
        return ChatMessage(role=ROLES[item["role"]], content=_text(item))
    call_id = item["call_id"]
    return ChatMessage(
        role="tool", content=item["output"], tool_call_id=call_id, name=names.get(call_id, "")
    )


class _AssistantTurn:
    """What an assistant said until somebody else's turn."""

    def __init__(self) -> None:
        self._reasoning = ""
        self._content: str | None = None
        self._calls: list[ToolCall] = []

    def takes(self, item: Item) -> bool:
        """Adds the item; False if it is not of this turn."""
        begun = self._content is not None or bool(self._calls)
        match item:
            case {"type": "function_call"}:
                call = ToolCall(id=item["call_id"], name=item["name"], arguments=item["arguments"])
                self._calls.append(call)
            case {"type": "reasoning"} if not begun:
                self._reasoning += _reasoning_text(item)
            case {"type": "message", "role": "assistant"} if not begun:
                self._content = _text(item)
            case _:
                return False
        return True

    def turns(self) -> list[ChatMessage]:
        """The turn, if there is one: reasoning without what it led to says nothing."""
        if self._content is None and not self._calls:
            return []
        return [
            ChatMessage(
                role="assistant",
                content=self._content or "",
                tool_calls=tuple(self._calls),
                reasoning=self._reasoning,
            )
        ]


def _text(item: Item) -> str:
    return "\n".join(part[_TEXT_PARTS[part["type"]]] for part in item["content"])


def _reasoning_text(item: Item) -> str:
    parts = item.get("content") or item.get("summary") or []
    return "\n".join(part["text"] for part in parts)


def _checked_item(item: Any, index: int) -> Item:
    if not isinstance(item, dict):
        raise _error(index, "must be an object")
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference"
    check = _CHECKS.get(kind) if isinstance(kind, str) else None
    if check is None:
        shown = str(kind)[:MAX_ECHOED]
        raise _error(index, f"items of type {shown} are not supported here", "type")
    return check(item, index)


def _message(item: Item, index: int) -> Item:
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _error(index, f"must be one of {', '.join(ROLES)}", "role")
    kind = "output_text" if role == "assistant" else "input_text"
    content = _parts(item.get("content"), kind, index, "content")
    return {"type": "message", "role": role, "status": "completed", "content": content}


def _call(item: Item, index: int) -> Item:
    arguments = item.get("arguments")
    if not isinstance(arguments, str):
        raise _error(index, "must be a text of JSON", "arguments")
    return {
        "type": "function_call",
        "call_id": _name(item, "call_id", index),
        "name": _name(item, "name", index),
        "arguments": arguments,
        "status": "completed",
    }


def _call_output(item: Item, index: int) -> Item:
    output = item.get("output")
    if isinstance(output, list):
        parts = _parts(output, "input_text", index, "output")
        output = "\n".join(part[_TEXT_PARTS[part["type"]]] for part in parts)
    if not isinstance(output, str):
        raise _error(index, "must be a text or a list of text parts", "output")
    return {
        "type": "function_call_output",
        "call_id": _name(item, "call_id", index),
        "output": output,
        "status": "completed",
    }


def _reasoning(item: Item, index: int) -> Item:
    """What another service has encrypted is left out."""
    summary = _parts(item.get("summary") or [], "summary_text", index, "summary")
    content = _parts(item.get("content") or [], "reasoning_text", index, "content")
    return {"type": "reasoning", "summary": summary, "content": content}


def _reference(item: Item, index: int) -> Item:
    return {"type": "item_reference", "id": _name(item, "id", index)}


_CHECKS: dict[str, Callable[[Item, int], Item]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _call_output,
    "reasoning": _reasoning,
    "item_reference": _reference,
}


def _name(item: Item, field: str, index: int) -> str:
    name = item.get(field)
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID:
        raise _error(index, f"must be a text of 1 to {MAX_ID} characters", field)
    return name


def _parts(content: Any, kind: str, index: int, field: str) -> list[Item]:
    """A content as a list of parts with text. `kind`: of a content that is a text itself."""
    if isinstance(content, str):
        return [_part(kind, content)]
    if not isinstance(content, list):
        raise _error(index, "must be a text or a list of text parts", field)
    return [_checked_part(part, index, field, at) for at, part in enumerate(content)]


def _checked_part(part: Any, index: int, field: str, at: int) -> Item:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _SEEN_PARTS:
        message = f"{_SEEN_PARTS[kind]} are not understood here; only text is"
        raise _error(index, message, field, at)
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise _error(index, "must be a part with text, such as input_text", field, at)
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise _error(index, f"has no text in {_TEXT_PARTS[kind]}", field, at)
    return _part(kind, text)


def _part(kind: str, text: str) -> Item:
    part: Item = {"type": kind, _TEXT_PARTS[kind]: text}
    if kind == "output_text":
        part["annotations"] = []
    return part


def _error(index: int, message: str, *location: str | int) -> PydanticCustomError:
    return PydanticCustomError("item", "{message}", {"message": message, "at": (index, *location)})


def size(items: Iterable[Item]) -> int:
    """The bytes that the items take as they are stored."""
    return sum(len(json.dumps(item)) for item in items)
